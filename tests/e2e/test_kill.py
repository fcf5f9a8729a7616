"""Builds killed at any moment: `pytest tests/e2e/test_kill.py --kills 100` before a release, a few in every run."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint

from sala_export.bundle.reader import Bundle

PROGRAM = Path(sys.executable).with_name("sala-export")
OUTPUT = "out.sala"
ROUNDS_BETWEEN_WHOLE_BUILDS = 10


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["-v", "build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), "-o", OUTPUT, *options]
    small = ["--max-context", "4K", "--prefill-chunk", "256", "--layers", "3", "--shards", "3"]
    return subprocess.Popen(
        [PROGRAM, *arguments, *small], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(directory: Path) -> str:
    """A build that is left alone; returns what it told on stderr."""
    process = start(directory)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


def wait_for(directory: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(directory.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_whole(directory: Path) -> None:
    """Nothing is there but a bundle that is what its manifest says."""
    assert [path.name for path in directory.iterdir()] == [OUTPUT]
    Bundle.open(directory / OUTPUT).verify_hashes()


def test_builds_killed_at_random_leave_no_half_bundle_and_nothing_to_clean(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    began = time.monotonic()
    finish(tmp_path)
    whole_build_s = time.monotonic() - began
    check_whole(tmp_path)
    shutil.rmtree(tmp_path / OUTPUT)

    chance = random.Random(0)
    kills = pytestconfig.getoption("--kills")
    for round_ in range(1, kills + 1):
        process = start(tmp_path)
        time.sleep(chance.uniform(0.0, whole_build_s))
        process.kill()
        process.communicate(timeout=60)
        if (tmp_path / OUTPUT).exists():
            check_whole(tmp_path)
            shutil.rmtree(tmp_path / OUTPUT)
        if round_ % ROUNDS_BETWEEN_WHOLE_BUILDS == 0 or round_ == kills:
            finish(tmp_path)
            check_whole(tmp_path)
            shutil.rmtree(tmp_path / OUTPUT)


def test_build_killed_in_its_third_shard_goes_on_there(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, f".{OUTPUT}.*/graph/shard-02.onnx", process)
    process.kill()
    process.communicate(timeout=60)
    (left,) = tmp_path.iterdir()
    finished = {name: (left / "engine" / name).stat() for name in ("shard-00.plan", "shard-01.plan")}

    told = finish(tmp_path)
    check_whole(tmp_path)
    assert "shard 1 of 3 is there from an earlier build" in told
    assert "shard 2 of 3 is there from an earlier build" in told
    assert "shard 3 of 3 is there" not in told
    for name, before in finished.items():
        after = (tmp_path / OUTPUT / "engine" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_shard_that_was_changed_meanwhile_is_built_again(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, f".{OUTPUT}.*/graph/shard-02.onnx", process)
    process.kill()
    process.communicate(timeout=60)
    (left,) = tmp_path.iterdir()
    plan = left / "engine" / "shard-00.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)

    told = finish(tmp_path)
    check_whole(tmp_path)
    assert "shard 1 of 3 is there" not in told
    assert "shard 2 of 3 is there from an earlier build" in told
    assert (tmp_path / OUTPUT / "engine" / "shard-00.plan").read_bytes() != content


def test_other_options_start_afresh(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, f".{OUTPUT}.*/graph/shard-02.onnx", process)
    process.kill()
    process.communicate(timeout=60)
    process = start(tmp_path, "--max-batch", "2")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "is there from an earlier build" not in told
    check_whole(tmp_path)
