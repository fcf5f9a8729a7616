"""Q/DQ graphs: the form that TensorRT fuses, and weights that are those of the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_graphs import quantized_graph
from support.quantized_reference import E2M1, dequantized, stored_tensors

from sala_export.checkpoint.quantization import SCHEMES
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.graph import read_graph
from sala_export.errors import DiskFullError
from sala_export.onnx import quantized_runs
from sala_export.onnx.export import export_graph
from sala_export.onnx.quantized_runs import PACKED_FILE, checkpoint_runs, place_runs, rewritten_bytes
from sala_export.onnx.shards import write_shard
from sala_export.specs import QUANTIZED_PRECISIONS, Precision

QKV = "layers.1.self_attn.qkv_proj"
MODULES = {
    "layers.1.self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "layers.1.self_attn.o_proj": ("self_attn.o_proj",),
    "layers.1.mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "layers.1.mlp.down_proj": ("mlp.down_proj",),
}


def load(folder: Path, *, with_data: bool = False) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=with_data)


def nodes_of(model: onnx.ModelProto, module: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name.startswith(f"{module}/")]


def weight_of(model: onnx.ModelProto, module: str) -> torch.Tensor:
    """What the product multiplies with, fp32 [out, in]: by ONNX's definition of DequantizeLinear, without its cast."""
    producers = {name: node for node in model.graph.node for name in node.output}
    values = {tensor.name: decoded(tensor) for tensor in model.graph.initializer if tensor.name.startswith("model.")}
    (product,) = (node for node in nodes_of(model, module) if node.op_type == "MatMul")
    transpose = producers[product.input[1]]
    dequantize = producers[transpose.input[0]]
    assert (transpose.op_type, dequantize.op_type) == ("Transpose", "DequantizeLinear")
    codes, scale = dequantize.input
    if scale in producers:
        inner = producers[scale]
        values[scale] = values[inner.input[0]] * values[inner.input[1]]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in dequantize.attribute}
    factor = values[scale]
    if "block_size" in attributes:
        assert attributes["axis"] == 1
        factor = factor.repeat_interleave(attributes["block_size"], 1)
    elif factor.ndim == 1:
        assert attributes["axis"] == 0
        factor = factor[:, None]
    return values[codes] * factor


def decoded(tensor: onnx.TensorProto) -> torch.Tensor:
    """The numbers of an initializer as ONNX defines its types, fp32."""
    raw = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.uint8)
    halves = torch.stack((raw & 15, raw >> 4), -1).flatten().to(torch.int64)
    match tensor.data_type:
        case onnx.TensorProto.FLOAT8E4M3FN:
            numbers = raw.view(torch.float8_e4m3fn)
        case onnx.TensorProto.INT8:
            numbers = raw.view(torch.int8)
        case onnx.TensorProto.INT4:
            numbers = (halves + 8) % 16 - 8
        case onnx.TensorProto.FLOAT4E2M1:
            numbers = torch.tensor([*E2M1, *(-value for value in E2M1)])[halves]
        case onnx.TensorProto.BFLOAT16:
            numbers = raw.view(torch.bfloat16)
        case _:
            numbers = raw.view(torch.float32)
    return numbers.to(torch.float32).reshape(tuple(tensor.dims))


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_weights_are_the_numbers_of_the_checkpoint(precision: Precision) -> None:
    model = load(quantized_graph(precision), with_data=True)
    stored = stored_tensors(tiny_checkpoint(2, precision))
    for module, parts in MODULES.items():
        names = [f"model.layers.1.{part}" for part in parts]
        expected = torch.cat([dequantized(stored, name, SCHEMES[precision].format) for name in names])
        # nvfp4 divides by a scale whose reciprocal the graph holds.
        torch.testing.assert_close(weight_of(model, module), expected, rtol=1e-6, atol=0, msg=module)


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_inputs_are_quantised_once_for_each_product(precision: Precision) -> None:
    model = load(quantized_graph(precision))
    expected = {
        Precision.FP8: ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Transpose", "MatMul"],
        Precision.INT8: ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Transpose", "MatMul"],
        Precision.INT4: ["DequantizeLinear", "Transpose", "MatMul"],
        Precision.NVFP4: ["TRT_FP4DynamicQuantize", *["DequantizeLinear"] * 4, "Transpose", "MatMul"],
    }[precision]
    for module in MODULES:
        assert [node.op_type for node in nodes_of(model, module)] == expected
    # What the pack keeps in 16 bits is a product of its own, and the operator takes both side by side.
    assert [node.op_type for node in nodes_of(model, "layers.1.self_attn.z_proj")] == ["Transpose", "MatMul"]
    (concat,) = nodes_of(model, "layers.1.self_attn.qkvz_proj")
    producers = {name: node.name for node in model.graph.node for name in node.output}
    assert [producers[name] for name in concat.input] == [f"{QKV}/MatMul", "layers.1.self_attn.z_proj/MatMul"]


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NVFP4])
def test_weights_stay_in_the_checkpoints_files(precision: Precision) -> None:
    folder = quantized_graph(precision)
    assert not (folder / PACKED_FILE).exists()
    assert rewritten_bytes(checkpoint_runs(Checkpoint.open(tiny_checkpoint(2, precision)))) == 0


def test_int4_is_written_once_more_in_twos_complement() -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, Precision.INT4))
    packed = stored_tensors(quantized_graph(Precision.INT4))
    name = "model.layers.1.self_attn.q_proj+k_proj+v_proj.weight_packed"
    codes = packed[name].to(torch.int32)
    parts = [checkpoint.quantized[f"model.layers.1.self_attn.{role}.weight"] for role in ("q_proj", "k_proj", "v_proj")]
    stored = torch.from_numpy(np.concatenate([part.data.raw() for part in parts])).reshape(codes.shape).to(torch.int32)
    for shift in (0, 4):
        assert torch.equal(((codes >> shift) + 8) % 16, (stored >> shift) % 16)
    size = (quantized_graph(Precision.INT4) / PACKED_FILE).stat().st_size
    needed = rewritten_bytes(checkpoint_runs(checkpoint))
    assert needed < size < needed + 8192


@pytest.mark.parametrize(("precision", "per_channel"), [(Precision.FP8, False), (Precision.INT8, True)])
def test_scattered_packs_with_scales_of_their_own_become_one_product(
    tmp_path: Path, precision: Precision, per_channel: bool
) -> None:
    source = write_quantized_checkpoint(
        tmp_path / "source", precision, per_channel=per_channel, shared_scales=False, ignore=("lm_head",)
    )
    folder = tmp_path / "graph"
    folder.mkdir()
    export_graph(Checkpoint.open(source), folder, precision, copy_weights=True)
    model, stored = load(folder, with_data=True), stored_tensors(source)
    modules = {**MODULES, "layers.1.self_attn.qkvz_proj": (*MODULES[QKV], "self_attn.z_proj")}
    del modules[QKV]
    for module, parts in modules.items():
        names = [f"model.layers.1.{part}" for part in parts]
        expected = torch.cat([dequantized(stored, name, SCHEMES[precision].format) for name in names])
        assert torch.equal(weight_of(model, module), expected), module
    scale = next(t for t in model.graph.initializer if t.name == "model.layers.1.self_attn.qkvz_proj.weight_scale")
    assert list(scale.dims) == [4 * 2048]
    assert (folder / PACKED_FILE).is_file()
    assert read_graph(folder).quantized_weights_bytes > read_graph(folder).quantized_parameters


def test_shards_of_a_quantised_graph_have_their_own_weights() -> None:
    folder = quantized_graph(Precision.NVFP4)
    whole = read_graph(folder)
    parts = []
    for layer in (0, 1):
        write_shard(folder / "model.onnx", layer, 1, folder / f"shard-{layer}.onnx")
        parts.append(read_graph(folder, f"shard-{layer}.onnx"))
        (folder / f"shard-{layer}.onnx").unlink()
    assert tuple(part.weights_bytes for part in parts) == whole.layer_weights_bytes
    assert sum(part.quantized_parameters for part in parts) == whole.quantized_parameters
    assert sum(part.quantized_weights_bytes for part in parts) == whole.quantized_weights_bytes


def test_disk_without_room_for_packed_weights_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = checkpoint_runs(Checkpoint.open(tiny_checkpoint(2, Precision.INT4)))
    usage = type("Usage", (), {"free": rewritten_bytes(runs) - 1})
    monkeypatch.setattr(quantized_runs.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"not enough disk to pack the quantised weights: .* needed"):
        place_runs(runs, tmp_path, {})
    assert not list(tmp_path.iterdir())
