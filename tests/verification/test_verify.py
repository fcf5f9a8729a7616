"""Verdicts: what passes, what fails and why, for checkpoints and for bundles."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from support.bundles import copy_bundle
from support.calibration import LAYERS, quantized_tiny, samples_file
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import write_cpu_bundle

from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.keymap import FINAL_NORM
from sala_export.checkpoint.reader import Checkpoint
from sala_export.cli.app import run
from sala_export.errors import BundleError
from sala_export.specs import Precision
from sala_export.verification.bundle_subject import BundleSubject
from sala_export.verification.metrics import LogitErrors, RowErrors, row_errors
from sala_export.verification.subject import CheckpointSubject
from sala_export.verification.thresholds import THRESHOLDS

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-verify-")
Capture = pytest.CaptureFixture[str]


@functools.cache
def bundle(precision: Precision | None) -> Path:
    source = tiny_checkpoint(LAYERS) if precision is None else quantized_tiny(precision)
    return write_cpu_bundle(source, Path(_FOLDER.name) / f"{precision}.sala")


def ids(tokens: int = 70) -> torch.Tensor:
    return torch.randint(0, 512, (tokens,), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("precision", [None, Precision.INT4])
def test_bundle_gives_the_rows_and_logits_of_its_checkpoint(precision: Precision | None) -> None:
    source = tiny_checkpoint(LAYERS) if precision is None else quantized_tiny(precision)
    expected, found = CheckpointSubject(Checkpoint.open(source)), BundleSubject(Bundle.open(bundle(precision)))
    assert found.config == expected.config
    rows = list(zip(expected.layers(ids()), found.layers(ids()), strict=True))
    assert len(rows) == LAYERS
    assert all(row_errors(a.rows, b.rows).relative_error < 1e-5 for a, b in rows)
    last = rows[-1]
    logits = expected.logits(last[0].rows)
    torch.testing.assert_close(found.logits(last[1].rows), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NVFP4])
def test_bundle_rounds_activations_as_the_emulation_does(precision: Precision) -> None:
    expected = CheckpointSubject(Checkpoint.open(quantized_tiny(precision)))
    found = BundleSubject(Bundle.open(bundle(precision)), layers=1)
    a, b = next(iter(expected.layers(ids()))), next(iter(found.layers(ids())))
    # Sums round differently, which takes a few numbers over the middle between two codes.
    assert row_errors(a.rows, b.rows).relative_error < 2e-3


def test_whole_graph_gives_the_logits_of_the_last_layer() -> None:
    import sala_export

    subject = BundleSubject(Bundle.open(bundle(Precision.INT4)))
    *_, last = subject.layers(ids())
    found = sala_export.load(bundle(Precision.INT4), threads=1).session(max_context=128).prefill(ids().int().numpy())
    expected = subject.logits(last.rows[-1:])[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("cpu.onnx", r"graph/cpu\.onnx was changed while it was read"),
        ("model.safetensors", r"model\.norm\.weight in .*\.safetensors has another SHA-256 than bundle\.json says"),
    ],
)
def test_a_bundle_that_changes_between_two_layers_is_refused(tmp_path: Path, changed: str, message: str) -> None:
    path = copy_bundle(bundle(Precision.INT4), tmp_path / "live.sala")
    opened = Bundle.open(path)
    subject, norm = BundleSubject(opened), opened.manifest.weights.tensors[FINAL_NORM]
    layers = subject.layers(ids())
    next(layers)
    file, offset = (path / "graph" / changed, 0) if changed == "cpu.onnx" else (path / norm.file, norm.offset)
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"?")
    with pytest.raises(BundleError, match=message):
        subject.logits(next(layers).rows)


def arguments(target: Path, *options: str, layers: int = LAYERS) -> list[str]:
    return ["verify", str(target), "--model", str(tiny_checkpoint(layers)), "--tokens", "64", *options]


def test_int8_checkpoint_passes_and_prints_tables(capsys: Capture) -> None:
    assert run(arguments(quantized_tiny(Precision.INT8))) == 0
    text = capsys.readouterr().out
    for expected in ("torch, int8 emulated", "cosine", "mean KL", "top-1 agreement", "of the range", "passes"):
        assert expected in text


def test_int4_rounded_to_nearest_fails_with_its_reasons(capsys: Capture) -> None:
    assert run(arguments(quantized_tiny(Precision.INT4, "rtn", 4), "--json", layers=4)) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert found["failures"]
    assert found["precision"] == "int4"
    assert len(found["layers"]) == 4
    assert found["logits"]["kl"] > found["thresholds"]["kl"]
    assert found["layers"][0]["input_range"] is None  # int4 leaves inputs alone


def test_bundle_is_verified_with_fewer_layers_on_text(capsys: Capture, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    options = ("--layers", "1", "--calibration", str(samples_file()), "--plot", str(plot), "--json")
    assert run(arguments(bundle(Precision.FP8), *options)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tested"].startswith("ONNX Runtime")
    assert len(found["layers"]) == 1
    assert found["layers"][0]["errors"]["cosine"] > 0.99
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nothing.sala"], ["nothing.sala does not exist: a bundle is the directory"]),
        (["."], ["has neither bundle.json nor config.json"]),
        (["QUANTISED", "--plot", "picture.gif"], ["--plot picture.gif", ".png"]),
        (["QUANTISED", "--tokens", "1"], ["--tokens 1: expected 2 to 524288"]),
        (["ORIGINAL"], ["is not quantised: there is nothing to verify"]),
        (["QUANTISED", "--model", "QUANTISED"], ["is quantised itself"]),
        (["QUANTISED", "--model", "OTHER"], ["--model is another model"]),
        (["QUANTISED", "--layers", "9"], ["layers is 9"]),
    ],
)
def test_bad_input_is_refused_in_one_line(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        "QUANTISED": str(quantized_tiny(Precision.FP8)),
        "ORIGINAL": str(tiny_checkpoint(LAYERS)),
        "OTHER": str(tiny_checkpoint(1)),
    }
    assert run(["verify", "--model", places["ORIGINAL"], *(places.get(each, each) for each in options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(word in captured.err for word in words)
    assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1


def test_every_limit_has_its_sentence_and_nan_fails() -> None:
    limits = THRESHOLDS[Precision.INT8]
    rows = RowErrors(cosine=0.5, least_cosine=0.1, max_error=3.0, relative_error=1.0)
    good = RowErrors(cosine=1.0, least_cosine=1.0, max_error=0.0, relative_error=0.0)
    bad = LogitErrors(
        tokens=9, kl=9.0, max_kl=9.0, top1=0.1, original_perplexity=2.0, tested_perplexity=9.0, logit_std=3.0
    )
    found = limits.failures([good, rows], bad, text=True)
    assert [sentence.split()[0] for sentence in found] == ["mean", "top-1", "cosine", "perplexity"]
    assert "after layer 1" in found[2]
    # Random tokens say nothing about perplexity.
    assert len(limits.failures([good, rows], bad, text=False)) == 3
    nan = float("nan")
    broken = LogitErrors(
        tokens=9, kl=nan, max_kl=nan, top1=nan, original_perplexity=nan, tested_perplexity=nan, logit_std=nan
    )
    spoiled = RowErrors(cosine=nan, least_cosine=nan, max_error=nan, relative_error=nan)
    assert len(limits.failures([good, spoiled], broken, text=True)) == 4
