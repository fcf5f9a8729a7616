"""The installed program, as a user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint

PROGRAM = Path(sys.executable).with_name("sala-export")
SMALL = ("--max-context", "4K", "--prefill-chunk", "256", "--layers", "2")


def sala(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_checkpoint_to_inspected_engine(tmp_path: Path) -> None:
    # Whatever lies in the working directory must not be taken for an installed package.
    (tmp_path / "onnx").mkdir()
    (tmp_path / "torch.py").write_text("raise ImportError('taken from the working directory')", encoding="utf-8")

    assert sala("random-checkpoint", "tiny", "--preset", "tiny", cwd=tmp_path).returncode == 0
    built = sala("build", "--gpu", "rtx5090", "--model", "tiny", *SMALL, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert built.stdout == "tiny-rtx5090-bf16.sala\n"
    assert "writing graphs: done in" in built.stderr
    told = sala("inspect", "tiny-rtx5090-bf16.sala", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["compute_capabilities"] == ["12.0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "tiny", "tiny-rtx5090-bf16.sala", "torch.py"]


def start_build(directory: Path) -> subprocess.Popen[str]:
    """A build in `directory` that has begun to write."""
    arguments = ["build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), *SMALL, "-o", "out.sala"]
    process = subprocess.Popen(
        [PROGRAM, *arguments], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(process, directory, "*.partial")
    return process


def wait_for(process: subprocess.Popen[str], directory: Path, pattern: str) -> None:
    """Wait until a path below `directory` has this pattern, and no longer than `process` runs."""
    deadline = time.monotonic() + 60
    while not any(directory.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "error: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_stopped_build_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int, line: str) -> None:
    process = start_build(tmp_path)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert told.endswith(line)
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    """Among it are links to the checkpoint, whose files the next build has opened by then."""
    process = start_build(tmp_path)
    wait_for(process, tmp_path, ".out.sala.partial/*/graph/*.safetensors")
    process.kill()
    process.communicate(timeout=60)
    (left,) = tmp_path.iterdir()
    assert left.name == ".out.sala.partial"
    again = sala("build", "--gpu", "rtx5090", "--model", str(tiny_checkpoint()), *SMALL, "-o", "out.sala", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.sala"]
