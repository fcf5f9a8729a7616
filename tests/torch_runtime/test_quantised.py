"""Quantised checkpoints and bundles on the torch runtime, against ONNX Runtime and an emulation that shares no code."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import copy_bundle
from support.calibration import quantized_tiny
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close
from support.quantized_reference import dequantized, quantized_model, round_mxfp8, stored_tensors
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.errors import BundleError, StateError
from sala_export.runtime.model import Model
from sala_export.specs import QUANTIZED_PRECISIONS, Precision
from sala_export.torch_runtime.load import TorchModel, load_torch
from sala_export.torch_runtime.products import PackedProduct, Rounding

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-torch-quantised-")
IDS = np.random.default_rng(0).integers(0, 512, 70)


@functools.cache
def bundle(precision: Precision) -> Path:
    return write_cpu_bundle(quantized_tiny(precision), Path(_FOLDER.name) / f"{precision}.sala")


@functools.cache
def loaded(model: Path, precision: str | None = None) -> TorchModel:
    return load_torch(model, device="cpu", precision=precision)


def prefill(model: Model) -> torch.Tensor:
    return torch.from_numpy(model.session(max_context=128).prefill(IDS))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_checkpoint_and_bundle_give_the_logits_of_an_independent_emulation(precision: Precision) -> None:
    with quantized_model(quantized_tiny(precision)) as model, torch.no_grad():
        expected = model(torch.from_numpy(IDS)[None])[0, -1]
    for source in (quantized_tiny(precision), bundle(precision)):
        # A number over the middle between two codes goes another way where sums round differently.
        assert relative_error(prefill(loaded(source)), expected) < 0.03


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_logits_are_those_of_the_cpu_form_and_of_the_reference(precision: Precision) -> None:
    found = prefill(loaded(bundle(precision)))
    torch.testing.assert_close(prefill(loaded(quantized_tiny(precision))), found, rtol=0, atol=0)
    with torch.no_grad():
        assert_close(loaded(bundle(precision)).reference.model(torch.from_numpy(IDS)[None])[0, -1], found)
    cpu_form = prefill(sala_export.load(bundle(precision), threads=1))
    assert relative_error(found, cpu_form) < (1e-5 if precision is Precision.INT4 else 0.03)
    # The original is further away than any rounding of sums.
    assert relative_error(prefill(loaded(tiny_checkpoint(2))), cpu_form) > 0.03


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8])
def test_sixteen_bits_are_close(precision: Precision, kind: str) -> None:
    model = loaded(bundle(precision), kind)
    assert model.precision == kind
    assert relative_error(prefill(model), prefill(loaded(bundle(precision)))) < 0.1


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_mxfp8_weights_are_exact_and_their_inputs_are_rounded_by_groups(kind: str) -> None:
    path = quantized_tiny(Precision.MXFP8)
    model, stored = loaded(path, kind), stored_tensors(path)
    parameters = dict(model.reference.model.named_parameters())
    modules = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    assert len(modules) == 2 * 8
    for module in modules:
        values = dequantized(stored, module, "mxfp8-quantized")
        assert torch.equal(parameters[f"{module}.weight"].float(), values), module
    dtype = getattr(torch, Precision(model.precision).dtype)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    rows, expected = x.clone(), round_mxfp8(x.float())
    Rounding(precision=Precision.MXFP8, scale=None)(rows)
    assert torch.equal(rows.float(), expected)
    with quantized_model(path) as reference, torch.no_grad():
        logits = reference(torch.from_numpy(IDS)[None])[0, -1]
    assert relative_error(prefill(model), logits) < (0.03 if kind == "fp32" else 0.1)


def test_states_move_between_a_quantised_bundle_and_its_checkpoint_only(tmp_path: Path) -> None:
    session = sala_export.load(bundle(Precision.INT4), threads=1).session(max_context=128)
    session.prefill(IDS)
    session.save(tmp_path / "a.state")
    for source in (bundle(Precision.INT4), quantized_tiny(Precision.INT4)):
        restored = loaded(source).restore(tmp_path / "a.state", max_context=128)
        assert_close(torch.from_numpy(restored.prefill([5])), torch.from_numpy(_continued()), 3e-5)
    for other in (quantized_tiny(Precision.INT8), tiny_checkpoint(2)):
        with pytest.raises(StateError, match="another model"):
            loaded(other).restore(tmp_path / "a.state")


@functools.cache
def _continued() -> np.ndarray:
    session = sala_export.load(bundle(Precision.INT4), threads=1).session(max_context=128)
    return session.prefill([*IDS, 5])


def test_it_is_said_in_one_line_and_the_memory_is_that_of_plain_weights(caplog: pytest.LogCaptureFixture) -> None:
    model = load_torch(bundle(Precision.FP8), device="cpu", precision="bf16")
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("fp8 is emulated in bf16 on cpu: weights are dequantised, inputs of their products rounded")
    plain = load_torch(tiny_checkpoint(2), device="cpu", precision="bf16")
    assert model.memory(1024) == plain.memory(1024)


def test_codes_that_changed_since_the_bundle_was_built_are_refused(tmp_path: Path) -> None:
    copy = copy_bundle(bundle(Precision.INT8), tmp_path / "copy.sala")
    source = Bundle.open(copy)
    tensor = source.manifest.weights.tensors["model.layers.1.mlp.up_proj.weight"]
    with (copy / tensor.file).open("r+b") as file:
        file.seek(tensor.offset + 77)
        file.write(b"\x55")
    with pytest.raises(BundleError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* has another SHA-256"):
        load_torch(copy, device="cpu")


def test_weights_of_another_checkpoint_run_on_a_quantised_bundle() -> None:
    model = load_torch(bundle(Precision.INT8), device="cpu", weights=quantized_tiny(Precision.INT8))
    assert_close(prefill(model), prefill(loaded(bundle(Precision.INT8))))


def test_parts_of_a_product_round_their_input_each_in_its_way() -> None:
    random = torch.Generator().manual_seed(3)
    x, weight = torch.randn(9, 16, generator=random), torch.randn(12, 16, generator=random)
    static = Rounding(precision=Precision.INT8, scale=0.03)
    coarse = Rounding(precision=Precision.INT8, scale=0.5)
    by_row = Rounding(precision=Precision.INT8, scale=None)
    expected = [
        (torch.round(x / 0.03).clamp(-128, 127) * 0.03) @ weight[:6].T,
        x @ weight[6:8].T,
        (torch.round(x / 0.5) * 0.5) @ weight[8:10].T,
        (torch.round(x / (x.abs().amax(1, keepdim=True) / 127)) * (x.abs().amax(1, keepdim=True) / 127))
        @ weight[10:].T,
    ]
    out = torch.empty(9, 12)
    PackedProduct(weight, [(2, static), (4, static), (2, None), (2, coarse), (2, by_row)])(x, out)
    torch.testing.assert_close(out, torch.cat(expected, 1), rtol=1e-5, atol=1e-5)
