"""Refusing builds that this machine has no room for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sala_export.engine import host
from sala_export.errors import DiskFullError, RequestError

GIB = 1 << 30


def test_available_memory_is_some_of_what_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < host.available_host_bytes() <= total


def test_build_that_needs_more_memory_than_there_is_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_host_bytes", lambda: 8 * GIB)
    host.check_memory(0)
    with pytest.raises(
        RequestError, match=r"needs about \d+\.\d\d GiB of memory, 8\.00 GiB are available: free some memory"
    ):
        host.check_memory(4 * GIB)


def test_disk_that_is_too_small_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match=rf"{tmp_path} has 1\.00 GiB free, the build takes about 1\.50 GiB"):
        host.check_disk(3 * GIB // 2, tmp_path)


def test_limit_of_the_control_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = tmp_path / "job"
    group.mkdir()
    for folder, limit in ((tmp_path, "max"), (group, "1000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700000\n")
        (folder / "memory.stat").write_text("anon 600000\ninactive_file 50000\n")
    monkeypatch.setattr(host, "_control_group", lambda: group)
    assert host.available_host_bytes() == 1_000_000 - 700_000 + 50_000
