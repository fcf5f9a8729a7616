"""The graph that engines are built from: its numbers, and what its inputs and constants are made of."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint
from support.closeness import assert_close
from support.engine_graphs import evaluate
from support.opened_files import opened
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import quantized_model
from support.small_models import write_small_checkpoint
from support.weight_inputs import assemble
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.bundle.manifest import WeightLayout, WeightPart
from sala_export.checkpoint.keymap import LM_HEAD
from sala_export.checkpoint.reader import Checkpoint
from sala_export.checkpoint.tensor_location import TensorLocation
from sala_export.errors import DiskFullError, RequestError
from sala_export.onnx import engine_constants
from sala_export.onnx.engine_constants import CONSTANTS_FILE, int4_columns
from sala_export.onnx.engine_form import ENGINE_GRAPH_FILE, WrittenEngineGraph, export_engine_graph
from sala_export.specs import QUANTIZED_PRECISIONS, DType, Precision

ALL_PRECISIONS = (Precision.BF16, Precision.FP16, *QUANTIZED_PRECISIONS)
QKV = "model.layers.1.self_attn.q_proj+k_proj+v_proj"


def source_of(precision: Precision) -> Path:
    return tiny_checkpoint(2, precision if precision.is_quantized else Precision.BF16)


def with_exact_scales(checkpoint: Path) -> Path:
    """Make the residual scale 0.5: the graph rounds it to 16 bits, the reference does not."""
    depth = Checkpoint.open(checkpoint).config.scale_depth / Checkpoint.open(checkpoint).config.residual_scale
    edit_json(checkpoint / "config.json", lambda fields: fields.update(scale_depth=0.5 * depth))
    assert math.isclose(Checkpoint.open(checkpoint).config.residual_scale, 0.5)
    return checkpoint


def export(checkpoint: Path, folder: Path, precision: Precision) -> WrittenEngineGraph:
    folder.mkdir()
    return export_engine_graph(Checkpoint.open(checkpoint), folder, precision)


WANTED_ROWS = (9, 4, 0, 9)
"""Rows of two sequences of five tokens: the last of each, the first, and one a second time."""


def logits_of(checkpoint: Path, folder: Path, precision: Precision) -> tuple[Tensor, Tensor]:
    """Logits of some of two sequences of five tokens: from the graph, and from torch.

    A number that falls on the border between two codes may go either way; among more tokens some do.
    """
    written, config = export(checkpoint, folder, precision), Checkpoint.open(checkpoint).config
    ids = torch.randint(0, config.vocab_size, (2, 5), generator=torch.Generator().manual_seed(1))
    weights = assemble(checkpoint, written.weights)
    outputs = evaluate(folder / ENGINE_GRAPH_FILE, config, written.step, weights, ids, WANTED_ROWS)
    if precision.is_quantized:
        with quantized_model(checkpoint) as model:
            logits = model(ids)
    else:
        logits = SalaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(ids)
    return outputs["logits"], torch.stack([logits[row // 5, row % 5] for row in WANTED_ROWS])


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_logits_are_those_of_the_model(tmp_path: Path, precision: Precision) -> None:
    checkpoint = with_exact_scales(copy_checkpoint(source_of(precision), tmp_path / "checkpoint"))
    assert_close(*logits_of(checkpoint, tmp_path / "graph", precision))


@pytest.mark.parametrize(
    ("precision", "per_channel", "shared_scales", "ignore"),
    [
        (Precision.INT8, True, True, ("re:.*z_proj", "re:.*o_gate", "lm_head")),
        (Precision.FP8, False, False, ("re:.*z_proj", "re:.*o_gate", "lm_head")),
        (Precision.INT8, False, False, ("lm_head",)),
        (Precision.FP8, True, True, ("re:.*down_proj", "re:.*layers.0.self_attn", "re:.*z_proj", "lm_head")),
    ],
    ids=["per-channel", "own-scales", "with-gates", "some-modules"],
)
def test_scales_of_any_form_serve_the_same_graph(
    tmp_path: Path, precision: Precision, per_channel: bool, shared_scales: bool, ignore: tuple[str, ...]
) -> None:
    checkpoint = write_quantized_checkpoint(
        tmp_path / "checkpoint", precision, per_channel=per_channel, shared_scales=shared_scales, ignore=ignore
    )
    assert_close(*logits_of(with_exact_scales(checkpoint), tmp_path / "graph", precision))


def test_per_tensor_and_per_channel_checkpoints_have_one_graph(tmp_path: Path) -> None:
    graphs = []
    for per_channel in (False, True):
        folder = tmp_path / str(per_channel)
        checkpoint = write_quantized_checkpoint(
            tmp_path / f"source-{per_channel}", Precision.INT8, per_channel=per_channel
        )
        graphs.append((export(checkpoint, folder, Precision.INT8), (folder / ENGINE_GRAPH_FILE).read_bytes()))
    assert graphs[0] == graphs[1]


def test_other_sizes_and_tied_embeddings(tmp_path: Path) -> None:
    sizes = {"kernel_size": 16, "kernel_stride": 8, "block_size": 32, "topk": 3, "window_size": 64, "init_blocks": 2}
    checkpoint = write_small_checkpoint(
        tmp_path / "checkpoint",
        ["lightning-attn", "minicpm4", "lightning-attn"],
        sparse_config={**sizes, "dense_len": -1},
        dtype=torch.bfloat16,
    )
    edit_json(checkpoint / "config.json", lambda fields: fields.update(tie_word_embeddings=True))
    (shard,) = checkpoint.glob("*.safetensors")
    save_file({name: tensor for name, tensor in load_file(shard).items() if name != LM_HEAD}, shard)
    assert_close(*logits_of(with_exact_scales(checkpoint), tmp_path / "graph", Precision.BF16))
    embedding = "model.embed_tokens.weight"
    readers = [n.op_type for n in onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE).graph.node if embedding in n.input]
    assert readers == ["Gather", "Gemm"]


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_inputs_are_the_step_and_then_the_weights(tmp_path: Path, precision: Precision) -> None:
    written = export(source_of(precision), tmp_path / "graph", precision)
    graph = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE, load_external_data=False).graph
    specs = [*written.step.inputs, *(weight.spec for weight in written.weights)]
    assert [value.name for value in graph.input] == [spec.name for spec in specs]
    for value, spec in zip(graph.input, specs, strict=True):
        dims = value.type.tensor_type.shape.dim
        assert tuple(dim.dim_param or dim.dim_value for dim in dims) == spec.shape
        assert (
            TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            == {
                DType.BFLOAT16: "BFLOAT16",
                DType.FLOAT16: "FLOAT16",
                DType.FLOAT32: "FLOAT",
                DType.INT32: "INT32",
                DType.INT64: "INT64",
                DType.INT8: "INT8",
                DType.FLOAT8_E4M3FN: "FLOAT8E4M3FN",
                DType.FLOAT4_E2M1FN: "FLOAT4E2M1",
            }[spec.dtype]
        )
    assert [value.name for value in graph.output] == [spec.name for spec in written.step.outputs]


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_every_tensor_of_the_checkpoint_is_an_input_or_a_constant(tmp_path: Path, precision: Precision) -> None:
    checkpoint = Checkpoint.open(source_of(precision))
    written = export(source_of(precision), tmp_path / "graph", precision)
    read = Counter(name for weight in written.weights for part in weight.parts for name in part.tensors)
    read.update(written.constants)
    assert read.keys() == checkpoint.tensors().keys()
    # Input scales of fp8 and int8 divide inputs and multiply outputs.
    assert {name for name, count in read.items() if count > 1} == {n for n in read if n.endswith(".input_scale")}
    kinds = {name.rpartition(".")[2] for name in written.constants}
    assert kinds == {
        Precision.INT4: {"weight_packed", "weight_scale"},
        Precision.NVFP4: {"weight_scale", "weight_global_scale", "input_global_scale"},
    }.get(precision, set())


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_graph_holds_code_alone(tmp_path: Path, precision: Precision) -> None:
    written = export(source_of(precision), tmp_path / "graph", precision)
    graph = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE, load_external_data=False).graph
    inside = [tensor for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    assert max(math.prod(tensor.dims) for tensor in inside) <= 4
    external = sum(
        int(entry.value) for tensor in graph.initializer for entry in tensor.external_data if entry.key == "length"
    )
    assert external == sum(file.stat().st_size for file in written.build_files)
    assert (external > 0) == (precision in (Precision.INT4, Precision.NVFP4))
    assert str(tmp_path).encode() not in (tmp_path / "graph" / ENGINE_GRAPH_FILE).read_bytes()
    written.remove_constants(tmp_path / "graph" / ENGINE_GRAPH_FILE)
    assert [file.name for file in (tmp_path / "graph").iterdir()] == [ENGINE_GRAPH_FILE]
    onnx.checker.check_model(str(tmp_path / "graph" / ENGINE_GRAPH_FILE))
    left = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE).graph
    constants = [tensor for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    shown = [(value.name, value.type.tensor_type.elem_type) for value in left.input[len(graph.input) :]]
    assert shown == [(tensor.name, tensor.data_type) for tensor in constants]
    assert list(left.node) == list(graph.node)


@pytest.mark.parametrize("precision", ALL_PRECISIONS)
def test_products_are_gemms_of_weights_as_stored(tmp_path: Path, precision: Precision) -> None:
    """But for int4 products, whose weights are constants."""
    export(source_of(precision), tmp_path / "graph", precision)
    graph = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    for node in products:
        if node.op_type == "Gemm":
            assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {"transB": 1}
    if precision is Precision.MXFP8:
        assert [node.name for node in products] == ["lm_head/Gemm"]
        return
    quantized = 8 if precision.is_quantized else 0
    expected = {"MatMul": quantized, "Gemm": 3} if precision is Precision.INT4 else {"Gemm": 9 + quantized // 4}
    assert Counter(node.op_type for node in products) == expected
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {"layers.1.mlp.gate_up_proj/", "layers.0.self_attn.o_proj/", "lm_head/"} <= {
        f"{node.name.rpartition('/')[0]}/" for node in products
    }


def test_float16_sums_are_in_fp32(tmp_path: Path) -> None:
    export(source_of(Precision.FP16), tmp_path / "graph", Precision.FP16)
    model = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE)
    casts = {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert len(gemms) == 9
    for node in gemms:
        assert [casts[name] for name in node.input] == [TensorProto.FLOAT, TensorProto.FLOAT]


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NVFP4])
def test_codes_are_inputs_as_they_are_stored(tmp_path: Path, precision: Precision) -> None:
    written = export(source_of(precision), tmp_path / "graph", precision)
    weights = {weight.spec.name: weight for weight in written.weights}
    codes = weights[f"{QKV}.weight"]
    role = "weight_packed" if precision is Precision.NVFP4 else "weight"
    modules = [f"model.layers.1.self_attn.{each}" for each in ("q_proj", "k_proj", "v_proj")]
    assert codes.parts == tuple(WeightPart(tensor=f"{module}.{role}") for module in modules)
    assert codes.spec.shape == (3 * 2048, 256)
    if precision is not Precision.NVFP4:
        assert weights[f"{QKV}.output_scale"].parts == tuple(
            WeightPart(tensor=f"{module}.weight_scale", rows=2048, factor=f"{module}.input_scale") for module in modules
        )
        assert weights[f"{QKV}.input_scale"].parts == tuple(
            WeightPart(tensor=f"{module}.input_scale") for module in modules
        )


def test_block_scaled_layers_are_operators_alone(tmp_path: Path) -> None:
    written = export(source_of(Precision.MXFP8), tmp_path / "graph", Precision.MXFP8)
    graph = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE).graph
    assert [node.name for node in graph.node if node.name.startswith("layers.1.")] == [
        "layers.1.input_layernorm/RMSNormBlockQuantize",
        "layers.1.self_attn.qkvz_proj/BlockScaledLinear",
        "layers.1.self_attn/LightningAttention",
        "layers.1.self_attn.o_proj/BlockQuantize",
        "layers.1.self_attn.o_proj/BlockScaledLinearAdd",
        "layers.1.post_attention_layernorm/RMSNormBlockQuantize",
        "layers.1.mlp.gate_up_proj/BlockScaledLinear",
        "layers.1.mlp/BlockQuantize",
        "layers.1.mlp.down_proj/BlockScaledLinearAdd",
    ]
    weights = {weight.spec.name: weight for weight in written.weights}
    scales = weights[f"{QKV}+z_proj.weight_scale"]
    assert (scales.spec.dtype, scales.spec.shape) == (DType.INT32, (256 // 128, 4 * 2048))
    assert scales.layout is WeightLayout.WORD_COLUMNS


def test_gate_in_16_bits_beside_block_scaled_projections(tmp_path: Path) -> None:
    """The norm is then an ordinary one, and its rows are quantised for the others."""
    ignore = ("re:.*z_proj", "re:.*o_gate", "re:.*layers.0.mlp.up_proj", "re:.*layers.1.mlp.down_proj", "lm_head")
    checkpoint = write_quantized_checkpoint(tmp_path / "checkpoint", Precision.MXFP8, ignore=ignore)
    assert_close(*logits_of(with_exact_scales(checkpoint), tmp_path / "graph", Precision.MXFP8))


def test_int4_codes_are_written_in_twos_complement_by_columns(tmp_path: Path) -> None:
    written = export(source_of(Precision.INT4), tmp_path / "graph", Precision.INT4)
    assert written.build_files == (tmp_path / "graph" / CONSTANTS_FILE,)
    model = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE)
    (codes,) = (tensor for tensor in model.graph.initializer if tensor.name == f"{QKV}.weight")
    assert (codes.data_type, tuple(codes.dims)) == (TensorProto.INT4, (256, 3 * 2048))
    checkpoint = Checkpoint.open(source_of(Precision.INT4))
    roles = ("q_proj", "k_proj", "v_proj")
    rows = np.concatenate(
        [nibbles(checkpoint.quantized[f"model.layers.1.self_attn.{role}.weight"].data.raw(), 256) for role in roles]
    )
    columns = nibbles(np.frombuffer(codes.raw_data, np.uint8), 3 * 2048)
    assert np.array_equal(np.where(columns < 8, columns, columns - 16), rows.T - 8)


@pytest.mark.parametrize("rows", [(2,), (3, 5), (63, 1), (65, 64, 1)])
def test_int4_columns_of_uneven_parts(tmp_path: Path, rows: tuple[int, ...]) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (sum(rows), 12), np.uint8)
    (tmp_path / "codes").write_bytes(b"head" + raw.tobytes())
    begins = [4 + 12 * sum(rows[:i]) for i in range(len(rows))]
    codes = opened(tmp_path / "codes")
    parts = [
        TensorLocation(file=codes, offset=begin, length=12 * n, dtype=DType.INT32, shape=(n, 3))
        for begin, n in zip(begins, rows, strict=True)
    ]
    columns = nibbles(int4_columns(parts), sum(rows))
    assert np.array_equal(np.where(columns < 8, columns, columns - 16), nibbles(raw, 24).T - 8)


def nibbles(raw: np.ndarray, columns: int) -> np.ndarray:
    """Four-bit numbers, the first of two in the low bits, in rows of `columns`."""
    return np.stack((raw & 15, raw >> 4), axis=-1).astype(int).reshape(-1, columns)


def test_disk_without_room_for_constants_is_refused_before_writing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(engine_constants.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"not enough disk for the constants .* MiB needed, 1.00 MiB free"):
        export(source_of(Precision.INT4), tmp_path / "graph", Precision.INT4)
    assert not (tmp_path / "graph" / CONSTANTS_FILE).exists()


def test_another_precision_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="quantised to int8"):
        export(source_of(Precision.INT8), tmp_path / "graph", Precision.BF16)
    assert not list((tmp_path / "graph").iterdir())
    shutil.rmtree(tmp_path / "graph")
    with pytest.raises(RequestError, match="is not quantised"):
        export(source_of(Precision.BF16), tmp_path / "graph", Precision.FP8)
