"""Describing a graph, and graphs that the engine stage refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from support.graphs import CONSTANTS_FILE, MiniGraph

from sala_export.checkpoint.presets import PRESETS
from sala_export.engine.graph import SparseSizes
from sala_export.engine.graph_reader import read_graph
from sala_export.errors import CheckpointError, RequestError, ShapeError
from sala_export.model.signature import TOKEN_INPUTS, signature
from sala_export.specs import DType, TensorSpec

MINI = MiniGraph(mixers=("lightning", "sparse"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return MINI.write(tmp_path)


def edit(path: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def test_graph_is_described_with_its_weights_apart_from_the_step(path: Path) -> None:
    graph = read_graph(path)
    assert graph.inputs[0] == TensorSpec("input_ids", DType.INT64, ("batch", "tokens"))
    assert TensorSpec("past_key_values.1.k1", DType.BFLOAT16, ("batch", 2, "capacity_k1", 64)) in graph.inputs
    assert len(graph.inputs) == 5 + 1 + 4
    assert TensorSpec("logits", DType.FLOAT32, ("rows", 512)) in graph.outputs
    assert graph.weights[0] == TensorSpec("model.embed_tokens.weight", DType.BFLOAT16, (512, 128))
    # By layer two products of the mixer and two of the MLP, of the lightning layer three norms; embedding and head.
    assert len(graph.weights) == 2 * 4 + 3 + 2
    mlp = 3 * 384 * 128
    lightning = 5 * 32 * 64 * 128 + 2 * 64 + 32 * 64
    sparse = (3 * 32 + 2 * 2) * 64 * 128
    assert graph.parameters == lightning + sparse + 2 * mlp + 2 * 512 * 128
    assert graph.weights_bytes == graph.input_weights_bytes == 2 * graph.parameters
    assert (graph.quantized_parameters, graph.constant_bytes) == (0, 0)
    assert (graph.hidden_size, graph.activation_dtype) == (128, DType.BFLOAT16)
    # q, k, v and gate of the lightning layer, 32 heads of 64 each, are one projection.
    assert graph.widest_projection == 4 * 32 * 64
    assert [node.op_type for node in graph.operators] == ["LightningAttention", "InfLLMv2Attention"]
    assert graph.operators[1].attributes["topk"] == 4
    assert graph.sparse_sizes() == SparseSizes(kernel_size=32, kernel_stride=16, block_size=64)


def test_inputs_of_the_step_are_those_of_the_signature() -> None:
    step = signature(PRESETS["9b"].config, DType.BFLOAT16)
    assert tuple(spec.name for spec in step.token_inputs) == TOKEN_INPUTS


@pytest.mark.parametrize(
    ("precision", "bits_outside", "bits_inside"),
    [("fp8", 8, 0.0), ("int8", 8, 0.0), ("int4", 0, 4 + 16 / 128), ("nvfp4", 4, 8 / 16)],
)
def test_quantised_weights_are_counted_where_they_are(
    tmp_path: Path, precision: str, bits_outside: int, bits_inside: float
) -> None:
    plain = read_graph(MiniGraph(mixers=("none",)).write(tmp_path))
    graph = read_graph(MiniGraph(mixers=("none",), precision=precision).write(tmp_path))
    assert graph.parameters == plain.parameters
    assert graph.quantized_parameters == 3 * 384 * 128
    assert graph.constant_bytes == graph.quantized_parameters * bits_inside / 8
    scales = 4 * (2 + 2 * 384 + 128) if bits_outside == 8 else 0
    others = 2 * (plain.parameters - graph.quantized_parameters)
    assert graph.input_weights_bytes == others + graph.quantized_parameters * bits_outside // 8 + scales
    assert graph.weights_bytes == graph.input_weights_bytes + graph.constant_bytes
    assert graph.widest_projection == plain.widest_projection == 2 * 384
    assert graph.activation_dtype is DType.BFLOAT16


def test_embedding_that_is_the_head_too_counts_once(tmp_path: Path) -> None:
    path = MiniGraph(mixers=("none",)).write(tmp_path)
    before = read_graph(path)

    def tie(graph: onnx.GraphProto) -> None:
        head = next(node for node in graph.node if node.name == "lm_head/Gemm")
        head.input[1] = "model.embed_tokens.weight"
        graph.input.remove(next(value for value in graph.input if value.name == "lm_head.weight"))

    edit(path, tie)
    assert before.parameters - read_graph(path).parameters == 512 * 128


def test_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"engine\.onnx does not exist: export the model there first"):
        read_graph(tmp_path / "engine.onnx")


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine.onnx"
    path.write_bytes(b"\xff\xff no graph")
    with pytest.raises(RequestError, match=r"is not an ONNX graph"):
        read_graph(path)


def test_missing_file_of_constants_is_named_with_a_tensor(tmp_path: Path) -> None:
    path = MiniGraph(mixers=("none",), precision="int4").write(tmp_path)
    (tmp_path / CONSTANTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"constants\.bin does not exist, but holds layers\.0\.mlp\.gate_up_proj"):
        read_graph(path)


def test_truncated_file_of_constants_is_named_with_the_tensor_that_is_cut(tmp_path: Path) -> None:
    path = MiniGraph(mixers=("none",), precision="int4").write(tmp_path)
    data = (tmp_path / CONSTANTS_FILE).read_bytes()
    (tmp_path / CONSTANTS_FILE).write_bytes(data[:-1])
    with pytest.raises(
        CheckpointError, match=rf"has {len(data) - 1} bytes, but layers\.0\.mlp\.down_proj\.codes ends at {len(data)}"
    ):
        read_graph(path)


def _rename_dimension(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "sequence"


def _make_input_double(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _free_a_weight(graph: onnx.GraphProto) -> None:
    weight = next(value for value in graph.input if value.name == "lm_head.weight")
    weight.type.tensor_type.shape.dim[0].dim_param = "tokens"


def _rename_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.domain == "sala").op_type = "FlashAttention"


def _drop_attribute(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "InfLLMv2Attention")
    kept = [attribute for attribute in node.attribute if attribute.name != "topk"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _rename_logits(graph: onnx.GraphProto) -> None:
    next(output for output in graph.output if output.name == "logits").name = "scores"


def _drop_embedding(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.name == "embed_tokens").op_type = "GatherElements"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_dimension, r"input_ids has dimension 'sequence', expected one of batch, tokens"),
        (_make_input_double, r"input_ids is DOUBLE, expected one of float32"),
        (_free_a_weight, r"input lm_head\.weight has shape \['tokens', 128\], but a weight's is fixed"),
        (_rename_operator, r"is sala::FlashAttention, known are LightningAttention, InfLLMv2Attention"),
        (_drop_attribute, r"layers\.1\.mixer\.attention lacks the attributes topk"),
        (_rename_logits, r"expected an output 'logits'"),
        (_drop_embedding, r"no Gather from an embedding weight"),
    ],
)
def test_unknown_interface_is_refused(path: Path, change: Callable[[onnx.GraphProto], None], message: str) -> None:
    edit(path, change)
    with pytest.raises(ShapeError, match=message):
        read_graph(path)


def test_sparse_layers_that_disagree_are_refused(tmp_path: Path) -> None:
    path = MiniGraph(mixers=("sparse", "sparse")).write(tmp_path)

    def change_stride(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.name == "layers.1.mixer.attention")
        next(attribute for attribute in node.attribute if attribute.name == "kernel_stride").i = 32

    edit(path, change_stride)
    with pytest.raises(ShapeError, match=r"layers\.0\.mixer\.attention and layers\.1\.mixer\.attention differ"):
        read_graph(path).sparse_sizes()
