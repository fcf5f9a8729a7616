"""Disks that are full or read-only, and a limit on the size of files, under every command that writes."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fault_ground import Ground
from support.file_faults import Effect, Fault
from support.writing_commands import QUICK, WRITING_COMMANDS, WritingCommand

NO_MOUNT = "mounting needs root"


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"{NO_MOUNT}: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def run(command: WritingCommand, directory: Path, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    words = list(map(str, command.arguments()))
    return subprocess.run(
        words,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )


def check_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "sala-run: "))]
    assert lines, done.stderr


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(map(size_of, path.iterdir()))


def largest_file(path: Path) -> int:
    return path.stat().st_size if path.is_file() else max(map(largest_file, path.iterdir()))


@pytest.mark.parametrize("name", QUICK)
def test_disk_or_limit_too_small_is_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    command = WRITING_COMMANDS[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(command, whole).returncode == 0
    output = whole / command.output

    limited = tmp_path / "limited"
    limited.mkdir()
    check_refused(run(command, limited, file_bytes=largest_file(output) // 2))
    assert list(limited.iterdir()) == []

    with small_disk(tmp_path / "small", size_of(output) * 2 // 3) as disk:
        check_refused(run(command, disk))
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("name", QUICK)
def test_read_only_disk_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    command = WRITING_COMMANDS[name]
    with small_disk(tmp_path / "read-only", 1 << 20) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = run(command, disk)
    check_refused(done)
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["random-checkpoint", "sala-run"])
def test_kills_in_a_container_where_every_process_is_number_1(name: str, tmp_path: Path) -> None:
    prefix = ["unshare", "--pid", "--fork", "--mount-proc"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{NO_MOUNT}: {tried.stderr.strip()}")
    ground = Ground(WRITING_COMMANDS[name], tmp_path, prefix)
    for number in [at for at, call in enumerate(ground.calls, 1) if call.startswith("rename")]:
        for effect in (Effect.KILL_BEFORE, Effect.KILL_AFTER):
            ground.put_old()
            assert ground.run(fault=Fault(at=number, effect=effect)).was_killed
            ground.check_whole()
    ground.finish()
