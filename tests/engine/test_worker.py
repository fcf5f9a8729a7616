"""The worker process: it ends with its parent and measures its own memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sala_export.engine.job import BuildJob, BuildResult, progress_line, read_line, result_line
from sala_export.engine.profiles import Profile, ProfileName, ShapeRange
from sala_export.specs import FlavourName

PACKAGE_PARENT = Path(__file__).parents[2]

CHILD = """
import os, sys, time
from sala_export.engine.worker import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""

PARENT = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())]).wait()
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_worker_dies_when_its_parent_is_killed() -> None:
    with python(PARENT, CHILD) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.kill()
    deadline = time.monotonic() + 5
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(worker)


def test_worker_whose_parent_has_gone_already_does_not_start() -> None:
    with python(CHILD, "1") as child:
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 1
    assert "the parent process has ended" in errors


def test_peak_memory_is_that_of_the_process_itself() -> None:
    ballast = bytearray(os.urandom(1 << 20) * 200)
    code = (
        "from sala_export.engine.worker import peak_resident_bytes as peak\n"
        "before = peak()\n"
        "x = bytearray(b'x') * (64 << 20)\n"
        "del x\n"
        "print(before, peak())"
    )
    with python(code) as child:
        output, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors
    before, after = map(int, output.split())
    assert before < len(ballast)
    assert 60 << 20 < after - before < 80 << 20


def test_job_and_result_survive_their_way(tmp_path: Path) -> None:
    shape = ShapeRange(name="input_ids", min=(1, 1), opt=(1, 8), max=(2, 8))
    job = BuildJob(
        flavour=FlavourName.RTX,
        compute_capabilities=("8.6", "12.0"),
        graph=tmp_path / "engine.onnx",
        plan=tmp_path / "engine.plan",
        log=tmp_path / "build.log",
        profiles=(Profile(name=ProfileName.PREFILL, inputs=(shape,)),),
        plugin_library=None,
    )
    result = BuildResult(error_type="BuildError", error="TensorRT refuses: “no”")
    assert BuildJob.from_json(job.to_json()) == job
    assert read_line(result_line(result)) == result


@pytest.mark.parametrize("phase", ["Parsing graph", 'odd "name"\nwith newline'])
def test_progress_line_is_one_line_and_reads_back(phase: str) -> None:
    line = progress_line(phase, 3, 30)
    assert line.count("\n") == 1
    assert read_line(line) == (phase, 3, 30)
