"""What can lie in the place of a file: anything that is none, and files that say more than they hold."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_fifo(path: Path) -> None:
    """Nobody writes to it: who opens it to read waits forever."""
    path.unlink()
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        # An address has at most 107 characters.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def put_endless_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def put_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def put_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def put_hole(path: Path) -> None:
    """A file of a tebibyte that takes no room: it can be neither read nor held in memory."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "directory": put_directory,
    "FIFO": put_fifo,
    "socket": put_socket,
    "endless device": put_endless_device,
    "dangling link": put_dangling_link,
    "link to itself": put_link_to_itself,
}
"""Each replaces the file at a path."""
