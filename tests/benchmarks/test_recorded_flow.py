"""What every program writes down can be recorded: figures by the programs' own writers, of a GPU that is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.benchmark_flow import measure_published_names
from support.findings import Finding
from support.made_up_figures import COMMIT, GPU, copy_of_documents, table_with
from support.triton_interpreter import call_interpreting
from torch import Tensor

from benchmarks import (
    batches,
    block_overlap,
    forks,
    gpu_tools,
    kernel_gate,
    passkey,
    pytest_figures,
    record,
    run_header,
    ttft,
)
from benchmarks.figures import KINDS, FigureWriter, read_figures
from benchmarks.first_light import Run
from benchmarks.first_light_steps import Step
from benchmarks.kernel_gate import Check
from benchmarks.kernel_ways import Way
from sala_export.checkpoint.config import SparseConfig
from sala_export.machine import Machine

NCU = """"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","lightning_prefill_kernel","Duration","us","9.5"
"""
SANITIZER = "========= Invalid __global__ write\n=========     at a_kernel\n========= ERROR SUMMARY: 1 error\n"


def header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = {"name": GPU, "driver": "999.99", "compute_capability": "9.9", "power_limit_watts": "70.00"}
    machine = Machine(
        processor="", cores=2, system="", python="3", sala_export="0", commit=f"{COMMIT[:12]}+", gpus=(smi,)
    )
    monkeypatch.setattr(run_header, "describe_machine", lambda: machine)
    assert not run_header.write_header(FigureWriter(path))


def gates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pass as they are compiled here; of the shipped cubins one gives no number, and one does not run."""

    def judge(check: Check, way: Way, device: str, repeats: int) -> list[Finding]:
        if way is Way.SHIPPED and check.operator == "infllmv2_attention":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [Finding(tensor="y", error=float("nan") if way is Way.SHIPPED else 0.05, limit=0.1)]

    monkeypatch.setattr(kernel_gate, "judge", judge)
    found = kernel_gate.run_gate([Way.JIT, Way.SHIPPED], [torch.float16], "cpu", 1, FigureWriter(path, "B"))
    checks = len(kernel_gate.checks([torch.float16]))
    assert [wrong is None for _, _, wrong in found] == [True] * checks + [False] * checks


def model(path: Path) -> None:
    arguments = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--contexts", "30", "--repeats", "1"]
    assert ttft.main([*arguments, "--new-tokens", "2", "--figures", str(path)]) == 0


def recall(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = passkey.Recall(
        length=8192,
        found=(True, False),
        prefill_seconds=1.5,
        question_seconds=0.1,
        peak_memory_bytes=1 << 30,
        device_memory_bytes=None,
        predicted_device_memory_bytes=1 << 20,
        precision="bf16",
    )
    monkeypatch.setattr(passkey, "measure_apart", lambda *_: row)
    arguments = ["--runtime", "torch", "--device", "cpu", "--lengths", "8K"]
    assert passkey.main([*arguments, "--figures", str(path)]) == 1, "a needle is lost"


def forked(path: Path) -> None:
    arguments = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--tokens", "1100", "--forks", "2"]
    assert forks.main([*arguments, "--figures", str(path)]) == 0


def batched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SIZES", (1, 2))
    arguments = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--context", "40", "--tokens", "2"]
    assert batches.main([*arguments, "--rounds", "1", "--figures", str(path)]) == 0


def overlap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, context = SparseConfig(topk=4, window_size=128, dense_len=512), 1024
    counts = block_overlap.LayerCounts(sparse, context, torch.device("cpu"))
    chosen: Tensor = torch.arange(3, dtype=torch.int32).expand(1, 2, context, 3)
    counts.add(chosen, torch.tensor([0], dtype=torch.int32))
    monkeypatch.setattr(block_overlap, "require_gpu_or_name", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(block_overlap, "subject", lambda *_: (None, None))
    monkeypatch.setattr(block_overlap, "measure", lambda *_: counts.overlaps(9))
    assert block_overlap.main(["--context", str(context), "--figures", str(path)]) == 0


def tools(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], hear: Callable[[str], None]) -> int:
        for line in (NCU if command[0] == "ncu" else SANITIZER).splitlines():
            hear(line)
        return 0

    monkeypatch.setattr(gpu_tools, "_run", run)
    assert gpu_tools.main(["profile", "--figures", str(path)]) == 0
    assert gpu_tools.main(["memcheck", "--figures", str(path)]) == 2


def failed_test(path: Path) -> None:
    config = SimpleNamespace(
        getoption={"--figures": path, "--step": "D"}.__getitem__,
        pluginmanager=SimpleNamespace(register=lambda plugin: plugins.append(plugin)),
    )
    plugins: list[pytest_figures._Failures] = []
    pytest_figures.pytest_configure(config)  # type: ignore[arg-type]
    report = SimpleNamespace(failed=True, longrepr="y: error 2, limit 1", nodeid="tests/plugins/test_plugin_gpu.py::a")
    plugins[0].pytest_runtest_logreport(report)  # type: ignore[arg-type]


def steps(path: Path) -> None:
    run = Run(folder=path.parent, deadline=float("inf"))
    for code in (0, 2):
        step = Step(
            letter="A", name=f"ends with {code}", command=("-c", f"raise SystemExit({code})"), seconds=1, limit=9
        )
        list(run.outcomes([step]))


def test_everything_that_is_written_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.jsonl"
    header(path, monkeypatch)
    gates(path, monkeypatch)
    call_interpreting(measure_published_names, path)
    model(path)
    recall(path, monkeypatch)
    forked(path)
    batched(path, monkeypatch)
    overlap(path, monkeypatch)
    tools(path, monkeypatch)
    failed_test(path)
    steps(path)
    assert {figure["kind"] for figure in read_figures(path)} == set(KINDS)

    root = copy_of_documents(tmp_path / "copy")
    assert record.main([str(tmp_path)], root) == 0
    names = ("kernel_measurements.md", "runtimes.md")
    kernels, runtimes = ((root / "docs" / name).read_text(encoding="utf-8") for name in names)
    verdicts = {
        (row["operator"], row["code"]): (row["furthest off"], row["error"])
        for row in table_with(kernels, "furthest off", "error")
    }
    assert verdicts["lightning_attention", "JIT"] == ("decode, y", "0.05")
    assert verdicts["lightning_attention", "shipped cubins"] == ("decode, y", "inf")
    told, number = verdicts["infllmv2_attention", "shipped cubins"]
    assert told == "prefill: could not run: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert number == ""
    assert {row["call"] for row in table_with(kernels, "code", "median")} >= {"Lightning, one token"}
    assert table_with(kernels, "candidate", "relative time")
    assert table_with(kernels, "neighbours", "blocks of one")
    assert table_with(kernels, "counter", "value")
    assert [row["ended"] for row in table_with(kernels, "step", "ended")] == ["passed", "FAILED"]
    assert "test\\_plugin\\_gpu.py::a: y: error 2, limit 1" in kernels
    assert table_with(runtimes, "first token", "spread")
    assert table_with(runtimes, "prompt", "found")[0]["found"] == "1 of 2"
