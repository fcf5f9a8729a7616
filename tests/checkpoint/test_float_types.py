"""Checkpoints of several float types: same answers as one type, and what a narrower precision says or refuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import copy_checkpoint, tiny_checkpoint
from support.quantized_reference import stored_tensors
from support.runtime_bundles import write_cpu_bundle
from torch import Tensor

import sala_export
from sala_export.calibration.layer import QuantizationRecipe
from sala_export.calibration.quantize import quantize_checkpoint
from sala_export.calibration.samples import SampleRequest
from sala_export.checkpoint.float_types import convert_weights
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError
from sala_export.onnx.export import export_graph
from sala_export.specs import DType, Precision

IDS = [3, 141, 59, 26, 5]
NORM = "model.layers.0.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"


def written(path: Path, typed: Callable[[str, Tensor], Tensor]) -> Path:
    """The tiny checkpoint in one file, each tensor by name as `typed` gives it. All fit fp16 without rounding."""
    copy_checkpoint(tiny_checkpoint(2), path)
    # fp16 would round what lies below its subnormal numbers.
    tensors = {name: typed(name, tensor.half().bfloat16()) for name, tensor in stored_tensors(path).items()}
    for file in path.glob("*.safetensors*"):
        file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def mixed(name: str, tensor: Tensor) -> Tensor:
    """Norms in fp32, the embedding and one projection of a pack in fp16, all else in bf16."""
    if tensor.ndim == 1:
        return tensor.float()
    return tensor.half() if name == EMBEDDING or name.endswith("1.self_attn.k_proj.weight") else tensor


def onnxruntime_logits(source: Path, bundle: Path) -> np.ndarray:
    found = sala_export.load(write_cpu_bundle(source, bundle)).session(max_context=64).prefill(IDS)
    assert found is not None
    return found


def torch_logits(source: Path, precision: str) -> np.ndarray:
    model = sala_export.load(source, runtime="torch", device="cpu", precision=precision)
    found = model.session(max_context=64).prefill(IDS)
    assert found is not None
    return found


def test_mixed_types_give_the_answers_of_one_type(tmp_path: Path) -> None:
    one, several = written(tmp_path / "one", lambda name, tensor: tensor), written(tmp_path / "several", mixed)
    types = {where.dtype for where in Checkpoint.open(several).locations.values()}
    assert types == {DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16}
    assert Checkpoint.open(several).dtype is DType.BFLOAT16
    expected, found = (onnxruntime_logits(path, tmp_path / f"{path.name}.sala") for path in (one, several))
    # The same products, whose sums have another order by the type of the weights.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for precision in ("fp32", "bf16"):
        expected, found = (torch_logits(path, precision) for path in (one, several))
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_checkpoint_counts_as_the_type_of_its_matrices(tmp_path: Path, dtype: torch.dtype) -> None:
    path = written(tmp_path / "other", lambda name, tensor: tensor if tensor.ndim == 1 else tensor.to(dtype))
    assert Checkpoint.open(path).dtype == str(dtype).removeprefix("torch.")


def test_quantised_checkpoint_keeps_the_types_of_what_it_does_not_quantise(tmp_path: Path) -> None:
    path, output = written(tmp_path / "several", mixed), tmp_path / "int4"
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"input_ids": IDS * 4}) + "\n", encoding="utf-8")
    recipe = QuantizationRecipe.from_options(Precision.INT4, algorithm="rtn")
    quantize_checkpoint(Checkpoint.open(path), recipe, SampleRequest(file=samples), output)
    found = Checkpoint.open(output).locations
    assert found[NORM].dtype is found["model.norm.weight"].dtype is DType.FLOAT32
    assert found[EMBEDDING].dtype is DType.FLOAT16
    assert found["model.layers.0.self_attn.o_gate.weight"].dtype is DType.BFLOAT16


def test_exact_conversion_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint.open(written(tmp_path / "several", mixed))
    with caplog.at_level(logging.WARNING):
        convert_weights(checkpoint, Precision.FP32, may_round=False)
        assert not caplog.messages
        convert_weights(checkpoint, Precision.BF16, may_round=False)
    (line,) = caplog.messages
    norms = sum(len(where.shape) == 1 for where in checkpoint.locations.values())
    assert f"converting 2 weights from float16 and {norms} weights from float32 to bfloat16, which holds all" in line


@pytest.mark.parametrize(
    ("name", "value", "precision", "message"),
    [
        (NORM, torch.tensor(1 + 2.0**-8), Precision.BF16, "float32 and holds 1.00390625, which bfloat16 would round"),
        (EMBEDDING, torch.tensor(1 + 2.0**-9).half(), Precision.BF16, "float16 and holds 1.00195312, which bfloat16"),
        (NORM, torch.tensor(65536.0), Precision.FP16, "float32 and holds 65536, which float16 would round"),
        (EMBEDDING, torch.tensor(2.0**-30).bfloat16(), Precision.FP16, "bfloat16 and holds 9.31322575e-10, which fl"),
    ],
)
def test_rounding_is_refused_unless_the_precision_is_asked_for(
    tmp_path: Path,
    name: str,
    value: Tensor,
    precision: Precision,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def odd(each: str, tensor: Tensor) -> Tensor:
        if each != name:
            return tensor
        changed = tensor.to(value.dtype)
        changed.view(-1)[5] = value
        return changed

    checkpoint = Checkpoint.open(written(tmp_path / "odd", odd))
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_weights(checkpoint, precision, may_round=False)
    text = str(caught.value)
    assert f"model.safetensors: {name} is" in text
    assert text.endswith(f"give --precision {precision} to round weights to the nearest")
    convert_weights(checkpoint, precision, may_round=True)
    assert f"to {precision.dtype}, rounding to the nearest number what it does not hold" in caplog.messages[-1]


def test_infinity_and_nan_are_no_reason_to_refuse(tmp_path: Path) -> None:
    def special(name: str, tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, torch.nan).float() if name == NORM else tensor

    convert_weights(Checkpoint.open(written(tmp_path / "nan", special)), Precision.BF16, may_round=False)


def test_graph_for_onnx_tools_casts_what_is_of_another_type(tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    export_graph(Checkpoint.open(written(tmp_path / "several", mixed)), tmp_path / "graph", Precision.BF16)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tmp_path / "graph" / "model.onnx", load_external_data=False)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types[NORM] == onnx.TensorProto.FLOAT
    assert types[EMBEDDING] == onnx.TensorProto.FLOAT16
