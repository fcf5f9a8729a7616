"""Quantised checkpoints on the command line, from random weights to an answer on the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.calibration import samples_file
from support.checkpoints import tiny_checkpoint

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.calibration import samples
from sala_export.calibration.shipped_text import documents
from sala_export.checkpoint.reader import Checkpoint
from sala_export.cli.app import run
from sala_export.specs import Precision

Capture = pytest.CaptureFixture[str]


def test_int4_from_random_weights_to_logits(tmp_path: Path, capsys: Capture) -> None:
    model, bundle = tmp_path / "model", tmp_path / "model.sala"
    assert run(["random-checkpoint", str(model), "--preset", "tiny", "--layers", "2", "--precision", "int4"]) == 0
    sizes = ["--max-context", "2048", "--prefill-chunk", "128"]
    assert run(["build", "--gpu", "a6000", "--model", str(model), *sizes, "-o", str(bundle)]) == 0
    capsys.readouterr()
    assert run(["inspect", str(bundle), "--json", "--verify"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["precision"] == "int4"
    assert told["model"]["quantized_parameters"] == 3_997_696
    # TensorRT stores one of these small weights twice, which it does not do at sizes of a real model.
    assert 0.5 + 2 / 128 <= told["plan"]["constant_bytes"] / 3_997_696 < 0.56
    of_type = {product: gemm for gemm in told["gemms"] for product in gemm["products"]}
    assert "Int4" in of_type["layers.1.mlp.gate_up_proj/MatMul"]["weights"]
    assert "Int4" not in of_type["layers.1.self_attn.z_proj/Gemm"]["weights"]
    checkpoint_files = sorted(f"graph/{file.name}" for file in model.glob("*.safetensors"))
    assert sorted(file["path"] for file in told["weights"]["files"]) == checkpoint_files
    assert Bundle.open(bundle).manifest.precision is Precision.INT4
    assert sala_export.load(bundle).session(max_context=64).prefill([1, 2, 3]).shape == (512,)
    assert run(["inspect", str(bundle)]) == 0
    assert "int4, 3,997,696 weights quantised" in capsys.readouterr().out
    assert run(["generate", str(bundle), "--prompt", "a", "--max-new-tokens", "1", "--max-context", "64"]) == 0
    assert "runs on ONNX Runtime on the CPU, int4 computed in fp32" in capsys.readouterr().err


def test_build_quantises_first_where_it_is_given_text(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_checkpoint(2)
    command = ["build", "--gpu", "rtx5090", "--model", str(model), "--calibration", str(samples_file())]
    sizes = ["--max-context", "2048", "--prefill-chunk", "128"]
    assert run([*command, "--precision", "fp8", *sizes, "-o", "out.sala"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("out.sala")
    assert Bundle.open(tmp_path / "out.sala").manifest.precision is Precision.FP8
    quantised = f"{model.name}-fp8"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out.sala", quantised])
    assert run(["verify", "out.sala", "--model", str(model), "--tokens", "64"]) == 0
    capsys.readouterr()
    assert run([*command, "--precision", "fp8", *sizes, "-o", "again.sala"]) == 2
    assert f"{quantised} exists: build it with --model {quantised}" in capsys.readouterr().err
    assert run([*command, *sizes, "-o", "again.sala"]) == 2
    assert "--calibration: a bundle in bf16 needs none" in capsys.readouterr().err
    assert run([*command, "--precision", "nvfp4", "--calibration", "missing", *sizes, "-o", "again.sala"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out.sala", quantised])


def test_build_without_text_of_your_own_takes_the_text_that_ships(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # What is read is tried where samples are: here a few tokens of two documents will do.
    monkeypatch.setattr(samples, "documents", lambda: list(documents())[:2])
    model = tiny_checkpoint(2)
    sizes = ["--max-context", "2048", "--prefill-chunk", "128"]
    assert run(["build", "--gpu", "rtx5090", "--model", str(model), "--precision", "int8", *sizes]) == 0
    told = capsys.readouterr()
    bundle, quantised = f"{model.name}-rtx5090-int8.sala", f"{model.name}-int8"
    assert told.out.splitlines()[-1].endswith(bundle)
    assert f"quantising {model.name} to int8 first, as the checkpoint {quantised}\n" in told.err
    assert "calibrating with the text that ships with sala-export, 384 tokens: give --calibration FILE" in told.err
    assert Bundle.open(tmp_path / bundle).manifest.precision is Precision.INT8
    assert Checkpoint.open(tmp_path / quantised).precision is Precision.INT8


def test_export_of_a_checkpoint_that_is_not_quantised_names_the_command(tmp_path: Path, capsys: Capture) -> None:
    options = ["--precision", "fp8", "-o", str(tmp_path / "graph")]
    assert run(["export", "--model", str(tiny_checkpoint(1)), *options]) == 2
    assert "is not quantised; run sala-export quantize --precision fp8" in capsys.readouterr().err


def test_export_takes_the_precision_of_the_checkpoint(tmp_path: Path) -> None:
    source = tiny_checkpoint(1, Precision.INT8)
    assert run(["export", "--model", str(source), "-o", str(tmp_path / "graph")]) == 0
    assert (tmp_path / "graph" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("stored", "options", "words"),
    [
        (Precision.FP8, ["--gpu", "a6000"], "has no FP8, it runs .*; choose another --gpu, or take the original"),
        (Precision.NVFP4, ["--gpu", "rtx4090"], "has no NVFP4, .*; choose another --gpu, or take the original"),
        (Precision.FP8, ["--gpu", "rtx5090", "--precision", "bf16"], "is quantised to fp8; use --precision fp8, or"),
    ],
)
def test_precision_that_cannot_be_built_is_one_line(
    stored: Precision, options: list[str], words: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["build", "--model", str(tiny_checkpoint(2, stored)), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert not list(tmp_path.iterdir())


def test_plan_takes_the_precision_of_the_checkpoint(capsys: Capture) -> None:
    assert run(["plan", "--gpu", "rtx5090", "--model", str(tiny_checkpoint(2, Precision.NVFP4)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "nvfp4"
