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


def start(directory: Path) -> subprocess.Popen[str]:
    arguments = ["-v", "build", "--gpu", "rtx", "--model", str(tiny_checkpoint()), "-o", OUTPUT]
    small = ["--max-context", "4K", "--prefill-chunk", "256", "--layers", "3"]
    return subprocess.Popen(
        [PROGRAM, *arguments, *small], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(directory: Path) -> None:
    """A build that is left alone."""
    process = start(directory)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told


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
