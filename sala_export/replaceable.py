"""Tells before the work whether a file or directory may be replaced, and what its successor takes over from it.

Saved states follow the same rules (runtime/src/base/replaceable.cc).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from pathlib import Path

_ACCESS_LIST = "system.posix_acl_access"
_NO_ACCESS_LIST = (errno.ENODATA, errno.ENOTSUP)

# Of statx(2).
_IMMUTABLE, _APPEND_ONLY, _MOUNT_ROOT = 0x10, 0x20, 0x2000
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _STATX_TYPE = -100, 0x100, 1
_STATX_BYTES, _ATTRIBUTES = 256, slice(8, 16)

_CAP_FOWNER = 3


def obstacle_to_replacing(path: Path) -> str | None:
    """Why what has this path now, or nothing yet, cannot become something else, for the end of a sentence.

    None if nothing stands in the way. Links are not followed.
    """
    if _attributes_of(path.parent) & _APPEND_ONLY:
        return "its folder takes files and gives none away (chattr +a): choose another folder"
    try:
        status, folder = path.lstat(), path.parent.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.strerror}: choose another path"
    attributes = _attributes_of(path)
    if attributes & _MOUNT_ROOT:
        return "it is mounted on its own: mount its folder, or choose another path"
    if attributes & (_APPEND_ONLY | _IMMUTABLE):
        return "it may not be replaced (chattr +a or +i): choose another path"
    if not os.access(path, os.W_OK, effective_ids=True):
        return "Permission denied: choose another path"
    if _is_kept_by_sticky_bit(folder, status):
        return "it is another user's, in a folder where only owners replace files (mode +t): choose another path"
    return None


def take_over_attributes(file: Path, replaced: Path, before: os.stat_result) -> None:
    """Give a file the owner, the mode and the access control list of the one that it replaces, whose stat is `before`.

    Where this process may not give it away, it stays its own, and does not run as it.
    """
    now, mode = file.stat(), stat.S_IMODE(before.st_mode)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.chown(file, before.st_uid, before.st_gid)
        except PermissionError:
            mode &= 0o777
    file.chmod(mode)
    if not _take_over_access_list(file, replaced):
        # With a list, the group's bits stand for more users than the group.
        file.chmod(mode & ~stat.S_IRWXG)


def _take_over_access_list(file: Path, replaced: Path) -> bool:
    """As far as the disk has access control lists. False if the file did not get that of the replaced one."""
    try:
        access_list = os.getxattr(replaced, _ACCESS_LIST, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_ACCESS_LIST:
            return False
        return _without_access_list(file)
    try:
        os.setxattr(file, _ACCESS_LIST, access_list)
    except OSError:
        return False
    return True


def _without_access_list(file: Path) -> bool:
    """The folder may give its new files one."""
    try:
        os.removexattr(file, _ACCESS_LIST)
    except OSError as error:
        return error.errno in _NO_ACCESS_LIST
    return True


def _attributes_of(path: Path) -> int:
    """STATX_ATTR_... of what has the path. It is not opened, which would need a right to read it."""
    libc, status = ctypes.CDLL(None), ctypes.create_string_buffer(_STATX_BYTES)
    if libc.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_TYPE, status) != 0:
        return 0
    return int.from_bytes(status.raw[_ATTRIBUTES], sys.byteorder)


def _is_kept_by_sticky_bit(folder: os.stat_result, status: os.stat_result) -> bool:
    is_sticky = bool(folder.st_mode & stat.S_ISVTX)
    return is_sticky and os.geteuid() not in (status.st_uid, folder.st_uid) and not _acts_as_any_owner()


def _acts_as_any_owner() -> bool:
    """Whether this process may do with any file what its owner may."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_FOWNER & 1)
    return False
