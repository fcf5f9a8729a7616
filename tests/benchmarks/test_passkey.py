"""`benchmarks/passkey.py` on the torch runtime: needs no ONNX, finds all needles, tells what went wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.imports import run_without

from benchmarks import passkey
from benchmarks.figures import read_figures
from sala_export.errors import RunError

Capture = pytest.CaptureFixture[str]
LACKING = (
    "click",
    "httpx2",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
)
"""A bare GPU machine has some of them, but none is needed."""
ON_CPU = ("--runtime", "torch", "--device", "cpu", "--lengths", "2K,2500")


def test_torch_runtime_finds_the_needles_without_onnx(tmp_path: Path) -> None:
    figures = tmp_path / "figures.jsonl"
    command = ["-m", "benchmarks.passkey", *ON_CPU, "--figures", str(figures), "--step", "G"]
    done = run_without(LACKING, command, tmp_path / "missing")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:6] for line in done.stdout.splitlines()[1:]] == [
        ["2K"] + 5 * ["found"],
        ["2500"] + 5 * ["found"],
    ]
    told = read_figures(figures)[1:]
    assert [(line["kind"], line["step"], line["length"]) for line in told] == [
        ("passkey", "G", 2048),
        ("passkey", "G", 2500),
    ]
    for line in told:
        assert line["found"] == [True] * 5
        assert (line["runtime"], line["precision"], line["device_memory_bytes"]) == ("torch", "fp32", None)
        assert min(line["prefill_seconds"], line["question_seconds"]) > 0
        assert line["peak_memory_bytes"] > 2**20


def failing(reason: str) -> Callable[..., passkey.Recall]:
    def measure_apart(model_path: Path, length: int, options: argparse.Namespace) -> passkey.Recall:
        if length > 2048:
            raise RunError(reason)
        return passkey.Recall(
            length=length,
            found=(True,) * 5,
            prefill_seconds=2.0,
            question_seconds=0.5,
            peak_memory_bytes=1 << 30,
            device_memory_bytes=3 << 30,
            predicted_device_memory_bytes=2 << 30,
            precision="bf16",
        )

    return measure_apart


def test_length_that_fails_is_a_problem_and_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setattr(passkey, "measure_apart", failing("no room"))
    figures = tmp_path / "figures.jsonl"
    assert passkey.main([*ON_CPU, "--figures", str(figures)]) == 1
    printed = capsys.readouterr()
    assert printed.err == "passkey of 2500: failed: no room\n"
    assert printed.out.splitlines()[1].split()[-2:] == ["3.00", "GiB"]
    good, problem = read_figures(figures)[1:]
    assert (good["kind"], good["predicted_device_memory_bytes"]) == ("passkey", 2 << 30)
    assert (problem["kind"], problem["where"], problem["message"]) == ("problem", "passkey of 2500", "no room")
    assert passkey.main([*ON_CPU]) == 1
    assert capsys.readouterr().err == "error: no room\n"
    assert passkey.main([*ON_CPU, "--lengths", "1M", "--figures", str(figures)]) == 1
    assert capsys.readouterr().err.endswith("error: nothing was measured: every length failed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "torch"], "error: no CUDA device here"),
        (["--runtime", "torch", "--device", "cuda:77"], "error: device cuda:77: torch finds"),
        ([*ON_CPU, "--precision", "int8"], "error: --precision int8: the torch runtime runs no quantised weights"),
        ([*ON_CPU, "--lengths", "many"], "error: 'many' is not a token count"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert passkey.main([*arguments, "--figures", str(tmp_path / "figures.jsonl")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
