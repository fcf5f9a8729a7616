"""The gate of the kernels: what it covers, reports and refuses; on interpreted kernels and on planted faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.findings import Finding
from support.selection_calls import selection_on
from support.triton_interpreter import run_interpreted
from torch import Tensor

from benchmarks import kernel_gate, kernels
from benchmarks.figures import FigureWriter, read_figures
from benchmarks.kernel_gate import Check, RepeatedRun, red_operators, run_gate
from benchmarks.kernel_ways import Run, Way
from sala_export.ops.common.triton_run import INTERPRETED_SM
from sala_export.ops.infllmv2_attention import tiles

CPU = "cpu"
LIGHTNING = Check(operator="lightning_attention", name="decode", dtype=torch.float16)
SPARSE = Check(operator="infllmv2_attention", name="dense decode", dtype=torch.float16)


def test_it_covers_a_contested_selection_and_both_sequences() -> None:
    """From (topk + W + init) blocks on there are more candidates than may be chosen."""
    checks = kernel_gate.sparse_checks(torch.bfloat16)
    for name in ("prefill", "decode"):
        assert min(checks[name].past) // 64 - 32 - 1 > 62
    assert {case.tokens == 1 for case in checks.values()} == {True, False}
    assert {check.operator for check in kernel_gate.checks([torch.float16])} == {LIGHTNING.operator, SPARSE.operator}


def test_a_long_prefill_chooses_as_its_halves_do() -> None:
    """With bounds in any context, so that a short one will do."""
    taken: list[int] = []

    def run(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
        buffers = selection_on(INTERPRETED_SM, {"BOUNDED_TOKENS": 64})(operator, inputs, attributes)
        taken.extend(buffers["survivor_count"].flatten().tolist())
        return buffers

    (found,) = kernel_gate.long_prefill_findings(torch.bfloat16, run, CPU, context=12 << 10)
    assert found.passed
    # Eight tiles of the halves without bounds, and eight with.
    assert taken[:8] == [-1] * 8
    assert min(taken[8:]) >= 62


@pytest.mark.parametrize("sm", tiles.BOUNDED_BLOCKS)
def test_a_long_prefill_is_far_enough_for_bounds(sm: int) -> None:
    first = kernel_gate.LONG_CONTEXT - tiles.CONSTANTS["BOUNDED_TOKENS"]
    assert first // 64 - 33 >= tiles.BOUNDED_BLOCKS[sm]


def spoiled(tensor: str, spoil: Callable[[Tensor], None]) -> Run:
    """The interpreted kernels with a fault in one of their outputs."""

    def run(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
        result = run_interpreted(operator, inputs, attributes)
        spoil(result[tensor])
        return result

    return run


def add_a_hundredth(x: Tensor) -> None:
    x += 0.01 * x.abs().max()


def write_a_nan(x: Tensor) -> None:
    x.view(-1)[3] = float("nan")


def write_after_the_context(x: Tensor) -> None:
    x[0, 0, -1] = 0.0


def add_one(x: Tensor) -> None:
    x += 1


@pytest.mark.parametrize("check", [LIGHTNING, SPARSE], ids=lambda check: check.operator)
def test_right_kernels_pass(check: Check) -> None:
    found = check.findings(run_interpreted, CPU)
    assert all(finding.passed for finding in found), found
    assert "y" in [finding.tensor for finding in found]


@pytest.mark.parametrize(
    ("check", "tensor", "spoil", "red"),
    [
        (LIGHTNING, "y", add_a_hundredth, "y"),
        (LIGHTNING, "state_out", write_a_nan, "state_out"),
        (SPARSE, "y", write_a_nan, "y"),
        (SPARSE, "k_cache_out", write_after_the_context, "k_cache after the context"),
        (SPARSE, "k1_cache_out", add_a_hundredth, "k1_cache"),
        (SPARSE, "chosen", add_one, "chosen in dense mode"),
    ],
)
def test_wrong_tensor_is_named(check: Check, tensor: str, spoil: Callable[[Tensor], None], red: str) -> None:
    found = check.findings(spoiled(tensor, spoil), CPU)
    assert [finding.tensor for finding in found if not finding.passed] == [red]


def test_runs_of_other_bits_are_counted() -> None:
    """The second run of three moves one value by one bit; a workspace differs in all, as its writers may."""
    runs = 0

    def run(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
        nonlocal runs
        runs += 1
        inputs[0].add_(1.0)  # as operators that update their inputs do
        y = inputs[0].clone()
        if runs == 2:
            y.view(torch.int16)[2] ^= 1
        return {"y": y, "state_out": torch.full((4,), float("nan")), "carry": torch.full((4,), runs)}

    repeated = RepeatedRun(run, 3)
    assert torch.equal(repeated("lightning_attention", [torch.ones(5).half()], {})["y"], torch.full((5,), 2.0).half())
    assert (runs, repeated.differing) == (3, 1)


@pytest.fixture
def gate_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that runs two small checks, the first of which is off and the second cannot run."""

    def judge(check: Check, way: Way, device: str, repeats: int) -> list[Finding]:
        if check is SPARSE:
            raise RuntimeError("CUDA error: misaligned\n address")
        return [Finding(tensor="y", error=0.5, limit=0.1), Finding(tensor="state_out", error=0.0, limit=0.1)]

    monkeypatch.setattr(kernel_gate, "checks", lambda dtypes: [LIGHTNING, SPARSE])
    monkeypatch.setattr(kernel_gate, "judge", judge)


@pytest.mark.usefixtures("gate_of_two")
def test_everything_found_is_written_and_told(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    found = list(run_gate([Way.SHIPPED], [torch.float16], CPU, 1, FigureWriter(path, "B")))
    assert [wrong for _, _, wrong in found] == [
        "y is off by 0.5, allowed is 0.1",
        "RuntimeError: CUDA error: misaligned address",
    ]
    told = read_figures(path)
    assert [(figure["tensor"], figure["passed"]) for figure in told] == [("y", False), ("state_out", True), ("", False)]
    dtypes = [torch.float16]
    assert red_operators(path, Way.SHIPPED, dtypes) == {(LIGHTNING.operator, "float16"), (SPARSE.operator, "float16")}
    assert red_operators(path, Way.JIT, dtypes) is None, "nothing is known of another way"


@pytest.mark.usefixtures("gate_of_two")
def test_stopping_gate_names_the_first_that_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    options = kernels.parse(["--dtype", "fp16"])
    with pytest.raises(kernels.RedGateError, match=r"lightning_attention, decode, float16: y is off by 0\.5"):
        kernels.gated_cases(options, FigureWriter(None))
    assert capsys.readouterr().err == ""


def test_reporting_gate_goes_on_with_what_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.jsonl"
    writer = FigureWriter(path, "B")
    *all_but_one, last = kernel_gate.checks([torch.float16])
    for check in all_but_one:
        told = {"operator": check.operator, "check": check.name, "tensor": "y", "error": 0.0, "limit": 0.1}
        writer.write("gate", way="jit", dtype="float16", **told, passed=check.operator == "lightning_attention")
    assert red_operators(path, Way.JIT, [torch.float16]) is None, "a gate that was stopped half way is no gate"
    writer.write("gate", way="jit", operator=last.operator, check=last.name, dtype="float16", tensor="y", passed=True)
    options = kernels.parse(["--dtype", "fp16", "--quick", "--gate", "report", "--gate-from", str(path)])
    cases, is_red = kernels.gated_cases(options, FigureWriter(None))
    assert is_red
    assert {case.operator for case, _ in cases} == {"lightning_attention"}
    assert "RED InfLLM-v2, one token after 32K, float16" in capsys.readouterr().err


def test_without_a_gpu_it_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_gate.main([]) == 2
    assert capsys.readouterr().err == "error: no CUDA device here: this can only be measured on an NVIDIA GPU\n"


def test_ways_run_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One that dies is named, and the others have run."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], cwd: Path) -> None:
            started.append(command[1:])

        def wait(self) -> int:
            return -11 if len(started) == 2 else 0

    path = tmp_path / "figures.jsonl"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernel_gate, "subprocess", SimpleNamespace(Popen=Process))
    options = ["--way", "jit", "--way", "shipped", "--dtype", "fp16", "--figures", str(path), "--step", "B"]
    assert kernel_gate.main(options) == 2
    same = ["-m", "benchmarks.kernel_gate", "--dtype", "fp16", "--repeats", "20", "--step", "B", "--figures", str(path)]
    assert started == [[*same, "--way", way] for way in ("jit", "shipped")]
    assert "error: shipped ended with code -11" in capsys.readouterr().err
    assert [figure["kind"] for figure in read_figures(path)] == ["run"], "before any of them writes"
