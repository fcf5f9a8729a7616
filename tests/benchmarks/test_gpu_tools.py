"""What is read of NVIDIA's tools, from what they print; the tools themselves run on a GPU only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import gpu_tools
from benchmarks.figures import FigureWriter, read_figures

SANITIZER = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 2 bytes
=========     at infllmv2_append_kernel+0x1a0
=========     by thread (3,0,0) in block (1,0,0)
=========     Address 0x7f00 is out of bounds
=========
========= Invalid __global__ write of size 2 bytes
=========     at infllmv2_append_kernel+0x1a0
=========     by thread (4,0,0) in block (1,0,0)
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at lightning_output_kernel+0x20
=========
========= ERROR SUMMARY: 3 errors
"""
NCU = """==PROF== Connected to process 7
some output of the program
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"
"0","7","infllmv2_gather_kernel","GPU Speed Of Light Throughput","Duration","us","1,234.50",""
"0","7","infllmv2_gather_kernel","GPU Speed Of Light Throughput","L2 Cache Throughput","%","81.25",""
"0","7","infllmv2_gather_kernel","Launch Statistics","Function Cache Configuration","","CachePreferNone",""
"""


def printing(code: int, text: str) -> Callable[[Sequence[str], Callable[[str], None]], int]:
    """A tool that prints a text and ends."""

    def run(command: Sequence[str], hear: Callable[[str], None]) -> int:
        for line in text.splitlines():
            hear(line)
        return code

    return run


def test_a_tool_is_heard_line_by_line() -> None:
    heard: list[str] = []
    code = gpu_tools._run(["sh", "-c", "echo out; echo; echo err >&2; exit 3"], heard.append)
    assert (code, heard) == (3, ["out", "", "err"])


def test_sanitizer_reports_are_told_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_tools, "_run", printing(0, SANITIZER))
    path = tmp_path / "figures.jsonl"
    assert gpu_tools.check("memcheck", FigureWriter(path, "N")) == 3
    told = [
        "Invalid __global__ write of size 2 bytes at infllmv2_append_kernel+0x1a0",
        "Uninitialized __global__ memory read of size 4 bytes at lightning_output_kernel+0x20",
    ]
    assert [figure["message"] for figure in read_figures(path)] == told
    assert capsys.readouterr().out.splitlines() == [f"memcheck: {line}" for line in told]


@pytest.mark.parametrize(
    ("code", "text", "said"),
    [
        (1, "========= Error: Device not supported\n", "no summary: ========= Error: Device not supported"),
        (2, "error: no CUDA\n========= ERROR SUMMARY: 0 errors\n", "the program failed"),
        (1, "", "nothing printed"),
    ],
)
def test_sanitizer_that_has_not_checked_anything_is_an_error(
    code: int, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tools, "_run", printing(code, text))
    with pytest.raises(gpu_tools.ToolError, match=said):
        gpu_tools.check("memcheck", FigureWriter(None))


def test_counters_are_read_from_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tools, "_run", printing(0, NCU))
    path = tmp_path / "figures.jsonl"
    assert gpu_tools.profile(FigureWriter(path, "I")) == 2
    found = [(figure["metric"], figure["value"], figure["unit"]) for figure in read_figures(path)]
    assert found == [("Duration", 1234.5, "us"), ("L2 Cache Throughput", 81.25, "%")]


def test_profiler_without_counters_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tools, "_run", printing(1, "==ERROR== Failed to initialize the profiler\n"))
    with pytest.raises(gpu_tools.ToolError, match="Failed to initialize the profiler"):
        gpu_tools.profile(FigureWriter(None))


def test_missing_tool_is_named() -> None:
    with pytest.raises(gpu_tools.ToolError, match="no-such-tool is not on PATH"):
        gpu_tools._run(["no-such-tool"], print)
