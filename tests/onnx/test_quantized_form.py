"""`model.onnx` of quantised checkpoints: products of Q/DQ, and weights that are those of the checkpoint."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.checkpoints import tiny_checkpoint
from support.graph_runner import as_numpy, as_torch
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_graphs import quantized_graph
from support.quantized_reference import dequantized, rounding, stored_tensors

from sala_export.checkpoint.quantization import SCHEMES
from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.specs import QUANTIZED_PRECISIONS, Precision

QKV = "layers.1.self_attn.qkv_proj"
MODULES = {
    "layers.1.self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "layers.1.self_attn.o_proj": ("self_attn.o_proj",),
    "layers.1.mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "layers.1.mlp.down_proj": ("mlp.down_proj",),
}
QKVZ = "layers.1.self_attn.qkvz_proj"
WITH_GATES = {QKVZ: (*MODULES[QKV], "self_attn.z_proj")} | {name: MODULES[name] for name in MODULES if name != QKV}


def modules_of(precision: Precision) -> dict[str, tuple[str, ...]]:
    """The products of layer 1. The gates are quantised too by default in mxfp8."""
    return WITH_GATES if precision is Precision.MXFP8 else MODULES


def load(folder: Path) -> ir.Model:
    return ir.load(folder / GRAPH_FILE)


def nodes_of(model: ir.Model, module: str) -> list[ir.Node]:
    return [node for node in model.graph if node.name.startswith(f"{module}/")]


def product_of(model: ir.Model, module: str) -> ir.Node:
    (product,) = (node for node in nodes_of(model, module) if node.op_type == "MatMul")
    return product


def part(model: ir.Model, inputs: list[ir.Value], output: ir.Value) -> onnx.ModelProto:
    """The graph between values, with its weights inside."""
    cut = ir.Model(ir.convenience.extract(model.graph, inputs, [output]), ir_version=model.ir_version)
    ir.external_data.load_to_model(cut)
    return ir.to_proto(cut)


def weight_of(model: ir.Model, module: str) -> torch.Tensor:
    """What the product multiplies with, bf16 [out, in], by ONNX's own evaluator."""
    right = product_of(model, module).inputs[1]
    assert right.producer().op_type == "Transpose"
    (value,) = ReferenceEvaluator(part(model, [], right)).run(None, {})
    return as_torch(np.ascontiguousarray(value)).T


def stored_weight(stored: dict[str, torch.Tensor], parts: tuple[str, ...], precision: Precision) -> torch.Tensor:
    """What layer 1 of the checkpoint holds, fp32 [out, in]."""
    names = [f"model.layers.1.{role}" for role in parts]
    return torch.cat([dequantized(stored, name, SCHEMES[precision].format) for name in names])


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_weights_are_the_numbers_of_the_checkpoint(precision: Precision) -> None:
    model, stored = load(quantized_graph(precision)), stored_tensors(tiny_checkpoint(2, precision))
    # The scale of a block in nvfp4 is rounded to bf16 before the product with the code.
    tolerance = 2.0**-7 if precision is Precision.NVFP4 else 0.0
    for module, parts in modules_of(precision).items():
        expected = stored_weight(stored, parts, precision).to(torch.bfloat16)
        torch.testing.assert_close(weight_of(model, module), expected, rtol=tolerance, atol=0, msg=module)


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_inputs_are_rounded_as_the_format_says(precision: Precision) -> None:
    model, stored = load(quantized_graph(precision)), stored_tensors(tiny_checkpoint(2, precision))
    for module, parts in MODULES.items():
        quantize = next(node for node in nodes_of(model, module) if node.op_type == "QuantizeLinear")
        source, seen = quantize.inputs[0], product_of(model, module).inputs[0]
        x = torch.randn(1, 7, source.shape[2], generator=torch.Generator().manual_seed(1)) * 8
        # Two and a half times the range, so that some numbers saturate; powers of two hit ties.
        x[0, 0, :6] = torch.tensor([0.0, -0.0, 40.0, -40.0, 2.0, -0.125])
        x = x.to(torch.bfloat16)
        evaluator = ReferenceEvaluator(part(model, [source], seen))
        (found,) = evaluator.run(None, {source.name: as_numpy(x)})
        round_x = rounding(stored, f"model.layers.1.{parts[0]}", SCHEMES[precision].format)
        assert torch.equal(as_torch(found), round_x(x.float()).to(torch.bfloat16)), module


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_inputs_are_quantised_once_for_each_product(precision: Precision) -> None:
    model = load(quantized_graph(precision))
    by_block = ["Cast", "Reshape", "Abs", "ReduceMax", "Mul", "ReduceSum", "Div", "Log", "Div", "Round", "Max", "Pow"]
    by_block += ["Mul", "Less", "Mul", "Where", "Add", "QuantizeLinear", "DequantizeLinear", "Cast"]
    for module, parts in modules_of(precision).items():
        inputs, weight = {
            Precision.FP8: (["QuantizeLinear", "DequantizeLinear"], ["DequantizeLinear"]),
            Precision.MXFP8: (by_block, ["Cast", "Gather", "DequantizeLinear"]),
            Precision.INT8: (["QuantizeLinear", "DequantizeLinear"], ["DequantizeLinear"]),
            Precision.INT4: ([], ["DequantizeLinear"]),
            Precision.NVFP4: (["TRT_FP4DynamicQuantize"] + ["DequantizeLinear"] * 2, ["DequantizeLinear"] * 2),
        }[precision]
        concat = ["Concat"] if len(parts) > 1 else []
        expected = [*inputs, *weight * len(parts), *concat, "Transpose", "MatMul"]
        assert [node.op_type for node in nodes_of(model, module)] == expected
    if precision is Precision.MXFP8:
        return
    # What the pack keeps in 16 bits is a product of its own, and the operator takes both side by side.
    assert [node.op_type for node in nodes_of(model, "layers.1.self_attn.z_proj")] == ["Transpose", "MatMul"]
    (concat,) = nodes_of(model, "layers.1.self_attn.qkvz_proj")
    producers = [value.producer().name for value in concat.inputs]
    assert producers == [f"{QKV}/MatMul", "layers.1.self_attn.z_proj/MatMul"]


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_weights_and_scales_stay_in_the_checkpoints_files(precision: Precision) -> None:
    folder = quantized_graph(precision)
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    assert {path.name for path in folder.iterdir()} == {GRAPH_FILE, *checkpoint.shard_files()}
    initializers = load(folder).graph.initializers
    external = {n: v.const_value for n, v in initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    # The reciprocals of nvfp4's global scales are numbers of the graph; a pack takes the input scale of its first.
    siblings = ("k_proj.input_scale", "v_proj.input_scale", "up_proj.input_scale")
    left_out = {name for name in checkpoint.tensors() if name.endswith(("_global_scale", *siblings))}
    assert external.keys() == checkpoint.tensors().keys() - left_out
    for name, tensor in external.items():
        where = checkpoint.tensors()[name]
        assert (tensor.location, tensor.offset, tensor.length) == (where.file.path.name, where.offset, where.length)
    # The powers of two of mxfp8 are a table of 1 KiB.
    assert sum(v.const_value.nbytes for n, v in initializers.items() if n not in external) < 2048
    assert (folder / GRAPH_FILE).stat().st_size < 100_000


@pytest.mark.parametrize(("precision", "per_channel"), [(Precision.FP8, False), (Precision.INT8, True)])
def test_packs_with_scales_of_their_own_are_one_product(
    tmp_path: Path, precision: Precision, per_channel: bool
) -> None:
    source = write_quantized_checkpoint(
        tmp_path / "source", precision, per_channel=per_channel, shared_scales=False, ignore=("lm_head",)
    )
    folder = tmp_path / "graph"
    folder.mkdir()
    export_graph(Checkpoint.open(source), folder, precision)
    model, stored = load(folder), stored_tensors(source)
    for module, parts in WITH_GATES.items():
        expected = stored_weight(stored, parts, precision).to(torch.bfloat16)
        assert torch.equal(weight_of(model, module), expected), module


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_model_passes_the_onnx_checker(precision: Precision) -> None:
    model = onnx.load(quantized_graph(precision) / GRAPH_FILE)
    onnx.checker.check_model(model)


def test_onnx_runtime_dequantises_int4_with_zero_points() -> None:
    """In fp32: ONNX Runtime has no bf16 on a CPU."""
    model = load(quantized_graph(Precision.INT4))
    dequantize = next(node for node in nodes_of(model, QKV) if node.op_type == "DequantizeLinear")
    proto = part(model, [], dequantize.outputs[0])
    (scale,) = (tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.BFLOAT16)
    wide = onnx.numpy_helper.to_array(scale).view(ml_dtypes.bfloat16).astype(np.float32)
    scale.CopyFrom(onnx.numpy_helper.from_array(wide, scale.name))
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {})
    stored = stored_tensors(tiny_checkpoint(2, Precision.INT4))
    assert torch.equal(torch.from_numpy(found), stored_weight(stored, ("self_attn.q_proj",), Precision.INT4))
