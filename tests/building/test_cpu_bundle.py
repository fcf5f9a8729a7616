"""Bundles of `build --gpu cpu`: without an engine, and the same model as those that have one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.cli.cmd_build import build_request
from sala_export.errors import UnsupportedError
from sala_export.specs import DType, Precision

Capture = pytest.CaptureFixture[str]
IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of int4, whose codes are constants of an engine."""
    path = tmp_path_factory.mktemp("random") / "tiny"
    assert run(["random-checkpoint", "--preset", "tiny", "--layers", "2", "--precision", "int4", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.with_name("out.sala")
    assert run(["build", "--gpu", "CPU", "--model", str(checkpoint), "--link", "-o", str(path)]) == 0
    return path


def test_nothing_of_an_engine_is_in_it(bundle: Path, capsys: Capture) -> None:
    manifest = Bundle.open(bundle).manifest
    assert (manifest.engine, manifest.precision) == (None, Precision.INT4)
    assert {path.name for path in bundle.iterdir()} == {"bundle.json", "graph", "text"}
    assert not any(tensor.fixed for tensor in manifest.weights.tensors.values())
    assert {spec.dtype for spec in manifest.graph.cpu.fast.inputs[5:]} == {DType.BFLOAT16, DType.FLOAT32}
    assert run(["inspect", "--verify", "--json", str(bundle)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["target"], described["plan"], described["gpus"]) == ("cpu", None, [])
    assert 0 < described["model"]["quantized_parameters"] < described["model"]["parameters"]
    assert (run(["inspect", str(bundle)]), run(["doctor", str(bundle)])) == (0, 0)
    told = capsys.readouterr().out
    assert "none, the bundle is for CPUs" in told
    assert "for CPUs, without an engine" in told
    assert "the bundle was built for CPUs and has no engine: build one with --gpu" in told


@pytest.mark.parametrize("cpu_math", ["exact", "fast"])
def test_it_computes_what_a_bundle_with_an_engine_computes(
    checkpoint: Path, bundle: Path, tmp_path: Path, cpu_math: str
) -> None:
    other = write_cpu_bundle(checkpoint, tmp_path / "other.sala")
    built, beside = (sala_export.load(path, cpu_math=cpu_math, threads=1) for path in (bundle, other))
    assert (built.runtime, built.fingerprint) == ("onnxruntime", beside.fingerprint)
    np.testing.assert_array_equal(built.session().prefill(IDS), beside.session().prefill(IDS))
    assert "has no TensorRT engine" in built.runtime_reason


def test_what_needs_an_engine_says_so_in_a_line(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(UnsupportedError, match="has no TensorRT engine: runtime onnxruntime runs it"):
        sala_export.load(bundle, runtime="tensorrt")
    assert run(["trtexec", str(bundle), "-o", str(tmp_path / "scripts")]) == 2
    assert "has no TensorRT engine: build a bundle with an engine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gpu", "cpu", "--max-context", "4K"], "build --gpu cpu takes no --max-context: leave it out"),
        (
            ["--gpu", "cpu", "--max-batch", "1", "--prefill-chunk", "64", "--flavour", "rtx"],
            "takes no --prefill-chunk and no --max-batch and no --flavour: leave them out",
        ),
        (["--gpu", "cpu,rtx"], "--gpu cpu,rtx: cpu stands alone, give it without other names"),
        (["--gpu", "cpu", "--precision", "int5"], "--precision int5: unknown, use one of bf16, fp16"),
        (["--gpu", "cpu", "--calibration", "text.jsonl"], "--calibration: a bundle in bf16 needs none"),
    ],
)
def test_options_that_mean_nothing_on_a_cpu_are_refused(
    options: list[str], says: str, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["build", *options, "--model", str(tiny_checkpoint()), "-o", str(tmp_path / "out.sala")]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_a_server_asks_of_an_engine_are_no_matter() -> None:
    request = build_request("cpu", str(tiny_checkpoint()), max_batch=8, max_context=1024)
    assert request.output.name.endswith("-cpu-bf16.sala")
