"""Verdicts: what passes, what fails and why, for checkpoints and for bundles."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bundles import copy_bundle
from support.calibration import LAYERS, quantized_tiny, samples_file
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import write_cpu_bundle

from sala_export import plotting
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.keymap import FINAL_NORM
from sala_export.checkpoint.reader import Checkpoint
from sala_export.cli.app import run
from sala_export.errors import BundleError
from sala_export.specs import QUANTIZED_PRECISIONS, CpuMath, Precision
from sala_export.verification.bundle_subject import BundleSubject
from sala_export.verification.checks import LayerResult, checks_of
from sala_export.verification.metrics import LogitErrors, OwnErrors, RowErrors, own_errors, row_errors
from sala_export.verification.subject import CheckpointSubject, run_layers
from sala_export.verification.thresholds import THRESHOLDS

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-verify-")
FAST_ERRORS = {
    Precision.INT4: 0.03,
    Precision.FP8: 0.05,
    Precision.MXFP8: 0.05,
    Precision.INT8: 0.04,
    Precision.NVFP4: 0.15,
}
"""Largest error of a layer, given the original's rows: one and a half times what was measured or more. Inputs of
quantised products cross the border between two codes."""
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
    rows = list(zip(*(run_layers(model, expected.embed(ids()), ids()) for model in (expected, found)), strict=True))
    assert len(rows) == LAYERS
    assert all(row_errors(a.rows, b.rows).relative_error < 1e-5 for a, b in rows)
    last = rows[-1]
    logits = expected.logits(last[0].rows)
    torch.testing.assert_close(found.logits(last[1].rows), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NVFP4])
def test_bundle_rounds_activations_as_the_emulation_does(precision: Precision) -> None:
    expected = CheckpointSubject(Checkpoint.open(quantized_tiny(precision)))
    found = BundleSubject(Bundle.open(bundle(precision)), layers=1)
    a, b = (model.layer(0, ids())(expected.embed(ids())) for model in (expected, found))
    # Sums round differently, which takes a few numbers over the middle between two codes.
    assert row_errors(a.rows, b.rows).relative_error < 2e-3


@pytest.mark.parametrize("precision", [None, *QUANTIZED_PRECISIONS])
def test_layers_of_the_fast_form_are_as_close_as_its_roundings(precision: Precision | None) -> None:
    source = tiny_checkpoint(LAYERS) if precision is None else quantized_tiny(precision)
    expected = CheckpointSubject(Checkpoint.open(source))
    found = BundleSubject(Bundle.open(bundle(precision)), math=CpuMath.FAST)
    rows = expected.embed(ids())
    # Both forms of mxfp8 round inputs alike: a layer may differ only where a sum crosses the border of two codes.
    least = 0 if precision is Precision.MXFP8 else 1e-4
    for layer in range(LAYERS):
        after = expected.layer(layer, ids())(rows).rows
        error = own_errors(rows, after, found.layer(layer, ids())(rows).rows).relative
        assert least < error < FAST_ERRORS.get(precision, 0.008)
        rows = after


def test_whole_graph_gives_the_logits_of_the_last_layer() -> None:
    import sala_export

    subject = BundleSubject(Bundle.open(bundle(Precision.INT4)))
    embedded = CheckpointSubject(Checkpoint.open(quantized_tiny(Precision.INT4))).embed(ids())
    *_, last = run_layers(subject, embedded, ids())
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
    layers = run_layers(subject, torch.zeros(70, 256), ids())
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
    for expected in ("torch in fp32, int8 emulated", "cosine", "mean KL", "same most likely token", "range", "passes"):
        assert expected in text
    assert "64 tokens of the text that ships with sala-export" in text
    assert "perplexity is not judged" in text  # the weights are random
    assert max(map(len, text.splitlines())) <= 80


def test_int4_rounded_to_nearest_fails_with_its_reasons(capsys: Capture) -> None:
    assert run(arguments(quantized_tiny(Precision.INT4, "rtn", 4), "--json", layers=4)) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert found["failures"]
    assert found["precision"] == "int4"
    assert len(found["layers"]) == 4
    assert all(f"{check['what']}" in " ".join(found["failures"]) for check in found["checks"] if not check["passed"])
    assert found["layers"][0]["input_range"] is None  # int4 leaves inputs alone


def test_bundle_is_verified_with_fewer_layers_on_text(capsys: Capture, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    options = ("--layers", "1", "--calibration", str(samples_file()), "--plot", str(plot), "--json")
    assert run(arguments(bundle(Precision.FP8), *options)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tested"].startswith("the exact CPU form in ONNX Runtime")
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
        (["QUANTISED", "--layers", "1", "--runtime", "torch"], ["--layers 1: --runtime torch runs the model whole"]),
        (["QUANTISED", "--plot", "a.png", "--runtime", "torch"], ["--plot a.png: --runtime torch runs"]),
        (["QUANTISED", "--runtime", "onnxruntime"], ["is a checkpoint, which only the torch runtime takes"]),
        (["QUANTISED", "--cpu-math", "fast"], ["--cpu-math fast", "is a checkpoint, only a bundle has it"]),
        (["QUANTISED", "--runtime", "torch", "--cpu-math", "fast"], ["cpu_math fast is for the runtime onnxruntime"]),
        (["OTHER_QUANTISED", "--runtime", "torch"], ["--model is another model"]),
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
        "OTHER_QUANTISED": str(tiny_checkpoint(1, Precision.FP8)),
    }
    assert run(["verify", "--model", places["ORIGINAL"], *(places.get(each, each) for each in options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(word in captured.err for word in words)
    assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1


def test_missing_matplotlib_is_found_before_the_models_are_opened(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda _: None)
    assert run(["verify", "nothing", "--model", "nothing", "--plot", "a.png"]) == 2
    error = capsys.readouterr().err
    assert error == "error: --plot needs matplotlib: pip install matplotlib, or leave --plot out\n"


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_model_that_runs_whole_is_judged_by_its_logits(capsys: Capture, runtime: str) -> None:
    assert run(arguments(bundle(Precision.INT4), "--runtime", runtime, "--json")) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["layers"] == []
    assert whole["tested"].startswith("the CPU form, run whole" if runtime == "onnxruntime" else "the torch runtime")
    assert whole["logits"]["tokens"] == 33  # the last of the prompt, and 32 steps of a token
    assert run(arguments(bundle(Precision.INT4), "--json")) == 0
    layers = json.loads(capsys.readouterr().out)
    assert whole["tokens_sha256"] == layers["tokens_sha256"]
    # The same model on the same tokens, of which one looks at half.
    assert whole["logits"]["kl"] == pytest.approx(layers["logits"]["kl"], rel=0.5)


def test_fast_form_is_judged_as_the_bundle(capsys: Capture) -> None:
    for options in ((), ("--runtime", "onnxruntime")):
        assert run(arguments(bundle(None), "--json", "--cpu-math", "fast", *options)) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["precision"], found["limits_of"]) == ("bf16", "bf16")
        assert 1e-7 < found["logits"]["kl"] < 1e-3


def test_plain_bundle_must_be_exact_in_fp32_and_close_in_16_bits(capsys: Capture) -> None:
    for options, limits in (((), "fp32"), (("--runtime", "onnxruntime"), "fp32"), (("--runtime", "torch"), "fp32")):
        assert run(arguments(bundle(None), "--json", *options)) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["precision"], found["limits_of"]) == ("bf16", limits)
        assert found["logits"]["kl"] < 1e-6


Tensors = dict[str, torch.Tensor]


def swap_scales(tensors: Tensors, _: Tensors) -> None:
    """The scales of two weights of one layer."""
    one, other = "model.layers.1.mlp.up_proj.weight_scale", "model.layers.1.mlp.down_proj.weight_scale"
    tensors[one], tensors[other] = tensors[other] * 1.5, tensors[one]


def clip_an_input(tensors: Tensors, _: Tensors) -> None:
    """As if the range had been measured on far quieter text."""
    for role in ("q_proj", "k_proj", "v_proj"):
        tensors[f"model.layers.1.self_attn.{role}.input_scale"] *= 0.1


def forget_a_loud_channel(tensors: Tensors, original: Tensors) -> None:
    """The norm as it was, as if the division by the channel's scale had not been folded in."""
    name = "model.layers.1.input_layernorm.weight"
    loudest = int(original[name].abs().argmax())
    tensors[name][loudest] = original[name][loudest] * 2


def turn_an_output_round(tensors: Tensors, _: Tensors) -> None:
    codes = tensors["model.layers.0.mlp.down_proj.weight"]
    codes[17] = (-codes[17].to(torch.float32)).to(codes.dtype)


def leave_the_gate_out(tensors: Tensors, original: Tensors) -> None:
    tensors["model.layers.1.self_attn.z_proj.weight"].zero_()


def swap_neighbours(tensors: Tensors, _: Tensors) -> None:
    """The two codes of each byte, as if they were packed in the other order."""
    packed = tensors["model.layers.1.mlp.down_proj.weight_packed"]
    codes = packed.view(torch.uint8)
    tensors["model.layers.1.mlp.down_proj.weight_packed"] = ((codes >> 4) | (codes << 4)).view(packed.dtype)


def shift_the_scales(tensors: Tensors, _: Tensors) -> None:
    """By one group, as if each row had one more at its beginning."""
    for role in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.1.mlp.{role}.weight_scale"
        tensors[name] = tensors[name].to(torch.float32).roll(1).to(tensors[name].dtype)


def lose_some_outputs(tensors: Tensors, _: Tensors) -> None:
    """Some, because an error in one that is quieter than most weighs less."""
    for role in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.0.{role}.weight_scale"][16:32] = 0


def clip_a_global_scale(tensors: Tensors, _: Tensors) -> None:
    """As if the range had been measured on far quieter text: block scales end at 448."""
    for role in ("q_proj", "k_proj", "v_proj"):
        tensors[f"model.layers.1.self_attn.{role}.input_global_scale"] *= 30


EIGHT_BITS = (swap_scales, clip_an_input, forget_a_loud_channel, turn_an_output_round, leave_the_gate_out)
FOUR_BITS = (swap_neighbours, shift_the_scales, lose_some_outputs, leave_the_gate_out)
FAULTS = [
    *((precision, fault) for precision in (Precision.FP8, Precision.INT8) for fault in EIGHT_BITS),
    *((Precision.MXFP8, fault) for fault in (shift_the_scales, turn_an_output_round, leave_the_gate_out)),
    *((precision, fault) for precision in (Precision.INT4, Precision.NVFP4) for fault in FOUR_BITS),
    (Precision.NVFP4, clip_a_global_scale),
]


@pytest.mark.parametrize(
    ("precision", "fault"), FAULTS, ids=[f"{precision}-{fault.__name__}" for precision, fault in FAULTS]
)
def test_planted_faults_fail(
    capsys: Capture, tmp_path: Path, precision: Precision, fault: Callable[[Tensors, Tensors], None]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(quantized_tiny(precision), broken)
    original: Tensors = {}
    for file in tiny_checkpoint(LAYERS).glob("*.safetensors"):
        original |= load_file(file)
    files = {file: load_file(file) for file in broken.glob("*.safetensors")}
    tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
    fault(tensors, original)
    for file, own in files.items():
        save_file({name: tensors[name].contiguous() for name in own}, file)
    assert run(arguments(broken)) == 1
    text = capsys.readouterr().out
    assert "fails: own error of a" in text
    assert "hint: " in text


def layer_result(cosine: float, own: float) -> LayerResult:
    rows = RowErrors(cosine=cosine, least_cosine=cosine, max_error=3.0, relative_error=1.0)
    errors = OwnErrors(relative=own, channel=own)
    return LayerResult(own=errors, errors=rows, largest_activation=None, input_range=None, saturated=None)


def logit_errors(value: float, perplexity: float = 2.0) -> LogitErrors:
    return LogitErrors(
        tokens=9,
        kl=value,
        max_kl=value,
        top1=1 - value,
        original_perplexity=perplexity,
        tested_perplexity=perplexity * (1 + value),
        vocab_size=512,
        logit_std=3.0,
    )


def test_every_limit_has_its_sentence_and_nan_fails() -> None:
    limits, good = THRESHOLDS[Precision.INT8], layer_result(1.0, 0.0)
    assert all(check.passed for check in checks_of([good], logit_errors(0.0), 1, limits))
    found = checks_of([good, layer_result(0.5, 1.0)], logit_errors(0.9), 2, limits)
    assert [check.what.split()[0] for check in found] == ["own", "own", "cosine", "mean", "same", "perplexity,"]
    assert not any(check.passed for check in found)
    assert [check.layer for check in found] == [1, 1, 1, None, None, None]
    # Where the original only guesses, perplexity is a matter of chance.
    assert len(checks_of([good], logit_errors(0.9, perplexity=600.0), 1, limits)) == 5
    nan = float("nan")
    broken = checks_of([good, layer_result(nan, nan)], logit_errors(nan), 2, limits)
    assert len(broken) == 6
    assert not any(check.passed for check in broken)


def test_limits_of_errors_that_add_up_grow_with_depth_and_those_of_a_layer_do_not() -> None:
    limits = THRESHOLDS[Precision.FP8]
    assert limits.kl_of(logit_errors(0.0), 32) == pytest.approx(16 * limits.kl_of(logit_errors(0.0), 2))
    assert limits.cosine_after(0) > limits.cosine_after(4) > limits.cosine_after(31) == limits.least_cosine
