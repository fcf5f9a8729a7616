"""The run of the first minutes on a GPU: its plan, and how it outlives steps that fail, hang or leave children."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import first_light
from benchmarks.figures import FigureWriter, read_figures
from benchmarks.first_light import CLOSING_SECONDS, Run, plan_text, summary
from benchmarks.first_light_steps import STEPS, Step, planned

ROOT = Path(__file__).parents[2]
WRITES = """
import json, sys
figures, step = sys.argv[sys.argv.index("--figures") + 1], sys.argv[sys.argv.index("--step") + 1]
with open(figures, "a") as file:
    file.write(json.dumps({"step": step, "kind": "problem", "where": "here", "message": "measured"}) + "\\n")
"""
HANGS = (
    WRITES
    + """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
)


def step(letter: str, code: str, *, seconds: int = 1, limit: int = 30) -> Step:
    return Step(letter=letter, name=f"step {letter}", command=("-c", code), seconds=seconds, limit=limit)


def is_running(process: int) -> bool:
    """False too for one that has ended and that nobody has waited for."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text(encoding="utf-8")


def run_in(folder: Path, seconds: float = 60) -> Run:
    FigureWriter(folder / first_light.FIGURES).write("run", machine={"gpu": None}, commit=None, rehearsal=True)
    return Run(folder=folder, deadline=time.monotonic() + CLOSING_SECONDS + seconds)


def test_everything_fits_the_default_and_the_last_is_left_out_first() -> None:
    assert all(start is not None for _, start in planned(STEPS, 570 - CLOSING_SECONDS))
    kept = [step for step, start in planned(STEPS, 300) if start is not None]
    left = 300 - sum(step.seconds for step in kept)
    assert left >= 0
    assert kept[:6] == list(STEPS[:6])
    assert len(kept) < len(STEPS)
    assert all(step.seconds > left for step in STEPS if step not in kept), "nothing that fits is left out"
    assert len({step.letter for step in STEPS}) == len(STEPS)
    assert all(step.seconds < step.limit for step in STEPS)
    *lines, total = plan_text(STEPS, 5).splitlines()
    assert lines[1].split()[:4] == ["A", "0", "s", str(STEPS[0].seconds)]
    assert "left out" in lines[-1]
    assert "of 300 s" in total


def test_page_has_every_step_with_its_time() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| ([A-Z]) \| .* \| (\d+) s \|$", page, re.MULTILINE)
    assert told == [(step.letter, str(step.seconds)) for step in STEPS]


def test_a_failing_and_a_hanging_step_leave_the_others(tmp_path: Path) -> None:
    steps = [
        step("A", "import sys; print('error: it is wrong\\n\\nit ends'); sys.exit(3)"),
        step("B", HANGS, limit=2),
        step("C", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        step("D", WRITES),
    ]
    run = run_in(tmp_path)
    outcomes = list(run.outcomes(steps))
    assert [outcome.state for outcome in outcomes] == ["FAILED", "STOPPED", "FAILED", "passed"]
    assert outcomes[0].line == f"A  FAILED after {outcomes[0].seconds:.0f} s: error: it is wrong"
    assert outcomes[2].message == "exit code -11, nothing printed"
    assert [outcome.figures for outcome in outcomes] == [0, 1, 0, 1], "what a stopped step has measured is kept"
    assert not is_running(int(outcomes[1].message)), "what a step has started ends with it"
    told = [figure for figure in read_figures(run.figures) if figure["kind"] == "step"]
    assert [(figure["step"], figure["state"]) for figure in told] == [(o.step.letter, o.state) for o in outcomes]
    text = summary(outcomes, read_figures(run.figures))
    assert text.startswith("NO GPU: a rehearsal")
    assert text.endswith("steps: 2 FAILED, 1 STOPPED, 1 passed")
    assert "=== A:" in (tmp_path / first_light.LOG).read_text(encoding="utf-8")


def test_steps_without_time_are_left_out_and_shorter_ones_still_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, seconds=20)
    outcomes = list(run.outcomes([step("A", "", seconds=100), step("B", "")]))
    assert [outcome.state for outcome in outcomes] == ["LEFT OUT", "passed"]


def test_summary_tells_what_matters() -> None:
    graph = {"kind": "kernel", "way": "shipped", "dtype": "bfloat16", "what": "operator in a CUDA graph"}
    gate = {"kind": "gate", "way": "jit", "operator": "lightning_attention", "check": "decode", "dtype": "float16"}
    figures = [
        {"kind": "run", "machine": {"gpu": "NVIDIA H100", "torch": "2.11.0", "triton": "3.6.0"}, "commit": "abc"},
        {**graph, "case": "Lightning, one token", "seconds": 4e-6, "floor_seconds": 2e-6},
        {**graph, "case": "left out", "what": "operator", "seconds": 1.0, "floor_seconds": 1.0},
        {**gate, "tensor": "y", "error": 0.5, "limit": 0.1, "passed": False},
        {**gate, "tensor": "state_out", "error": 0.0, "limit": 0.1, "passed": True},
        {"kind": "first_token", "context": 65536, "first_token_seconds": {"median": 2.5}, "token_seconds": None},
        {"kind": "passkey", "length": 8192, "found": [True, False], "prefill_seconds": 0.5},
    ]
    assert summary([], figures).splitlines() == [
        "NVIDIA H100, commit abc, torch 2.11.0, Triton 3.6.0",
        "RED  jit lightning_attention decode float16: y off by 0.5, allowed 0.1",
        "shipped  Lightning, one token: 4 us, 2.00 x its floor",
        "9B 65536 tokens: first token 2.50 s",
        "passkeys at 8192: 1 of 2 in 0.5 s",
        "steps: ",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--output DIR is missing"),
        (["--plan", "--minutes", "0"], "--minutes 0: give at least 1"),
        (["--plan", "--steps", "A,Z"], "no step 'Z': choose among A, B"),
        (["--output", __file__], "is there already and not empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        first_light.parse(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("step", [step for step in STEPS if "pytest" not in step.command], ids=lambda step: step.letter)
def test_every_program_takes_its_options_and_says_in_one_line_that_there_is_no_gpu(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, _, module, *arguments = step.arguments(tmp_path / "figures.jsonl")
    assert importlib.import_module(module).main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "GPU" in line
    written = read_figures(tmp_path / "figures.jsonl") if any(tmp_path.iterdir()) else ()
    assert [figure["rehearsal"] for figure in written[:1]] in ([], [True])
    assert {figure["kind"] for figure in written[1:]} <= {"problem"}


@pytest.mark.parametrize("step", [step for step in STEPS if "pytest" in step.command], ids=lambda step: step.letter)
@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the tests")
def test_every_selection_of_tests_finds_some_and_says_that_there_is_no_gpu(step: Step, tmp_path: Path) -> None:
    command = step.arguments(tmp_path / "figures.jsonl")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).split("\n")[:2] == ["ERROR: --require gpu: no CUDA device here", ""]
    at = command.index("--require")
    collecting = [*command[:at], *command[at + 2 :], "--collect-only"]
    done = subprocess.run(collecting, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"[1-9]\d*(/\d+)? tests collected", done.stdout), done.stdout[-500:]


FAILING = """
def test_right(): pass
def test_wrong(): assert 1 == 2, "one is not two"
"""


def test_failing_tests_become_figures(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(FAILING, encoding="utf-8")
    figures = tmp_path / "figures.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.pytest_figures", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)]
    subprocess.run([*command, "--figures", str(figures), "--step", "H"], cwd=ROOT, capture_output=True, check=False)
    (figure,) = read_figures(figures)
    assert (figure["step"], figure["kind"]) == ("H", "problem")
    assert figure["where"].endswith("test_some.py::test_wrong")
    assert "one is not two" in figure["message"]
