"""Describing a graph, and graphs that the engine stage refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import WEIGHTS_FILE, MiniGraph

from sala_export.engine.graph import SparseSizes, read_graph
from sala_export.errors import CheckpointError, RequestError, ShapeError
from sala_export.specs import DType, TensorSpec

MINI = MiniGraph(mixers=("lightning", "sparse"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MINI.write(tmp_path)
    return tmp_path


def edit(folder: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def test_graph_is_described_without_reading_weights(folder: Path) -> None:
    graph = read_graph(folder)
    assert graph.inputs[0] == TensorSpec("input_ids", DType.INT64, ("batch", "tokens"))
    assert TensorSpec("past_key_values.1.k1", DType.BFLOAT16, ("batch", 2, "capacity_k1", 64)) in graph.inputs
    assert TensorSpec("logits", DType.FLOAT32, ("batch", 512)) in graph.outputs
    assert graph.weights_bytes == (folder / WEIGHTS_FILE).stat().st_size
    assert graph.parameters * 2 == graph.weights_bytes
    assert (graph.hidden_size, graph.activation_dtype) == (128, DType.BFLOAT16)
    # q, k, v and gate of the lightning layer, 32 heads of 64 each, are one projection.
    assert graph.widest_projection == 4 * 32 * 64
    assert [node.op_type for node in graph.operators] == ["LightningAttention", "InfLLMv2Attention"]
    assert graph.operators[1].attributes["topk"] == 4
    assert graph.sparse_sizes() == SparseSizes(kernel_size=32, kernel_stride=16, block_size=64)


def test_weights_that_the_graph_casts_count_in_the_type_of_the_engine(tmp_path: Path) -> None:
    MiniGraph(mixers=("none",), dtype=TensorProto.FLOAT).write(tmp_path)
    plain = read_graph(tmp_path)

    def cast_all(graph: onnx.GraphProto) -> None:
        names = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name in names:
                    node.input[i] = f"{name}.bf16"
        for name in names:
            graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}.bf16"], to=TensorProto.BFLOAT16))

    edit(tmp_path, cast_all)
    cast = read_graph(tmp_path)
    assert (plain.activation_dtype, cast.activation_dtype) == (DType.FLOAT32, DType.BFLOAT16)
    assert cast.parameters == plain.parameters
    assert cast.weights_bytes * 2 == plain.weights_bytes
    assert cast.widest_projection == plain.widest_projection == 2 * 384


def test_weight_with_two_names_counts_once(tmp_path: Path) -> None:
    MiniGraph(mixers=("none",)).write(tmp_path)
    before = read_graph(tmp_path)

    def tie(graph: onnx.GraphProto) -> None:
        head, embedding = (
            next(tensor for tensor in graph.initializer if tensor.name == name)
            for name in ("lm_head.weight", "model.embed_tokens.weight")
        )
        del head.external_data[:]
        head.external_data.extend(embedding.external_data)

    edit(tmp_path, tie)
    assert before.parameters - read_graph(tmp_path).parameters == 512 * 128


def test_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"model\.onnx does not exist: export the model there first"):
        read_graph(tmp_path)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff no graph")
    with pytest.raises(RequestError, match=r"is not an ONNX graph"):
        read_graph(tmp_path)


def test_missing_weight_file_is_named_with_a_tensor(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin does not exist, but holds model\.embed_tokens\.weight"):
        read_graph(folder)


def test_truncated_weight_file_is_named_with_the_tensor_that_is_cut(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=rf"has {len(data) - 1} bytes, but lm_head\.weight ends at {len(data)}"):
        read_graph(folder)


def _rename_dimension(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "sequence"


def _make_input_double(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


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
        (_rename_operator, r"is sala::FlashAttention, known are LightningAttention, InfLLMv2Attention"),
        (_drop_attribute, r"layers\.1\.mixer\.attention lacks the attributes topk"),
        (_rename_logits, r"expected an output 'logits'"),
        (_drop_embedding, r"no Gather from an embedding weight"),
    ],
)
def test_unknown_interface_is_refused(folder: Path, change: Callable[[onnx.GraphProto], None], message: str) -> None:
    edit(folder, change)
    with pytest.raises(ShapeError, match=message):
        read_graph(folder)


def test_sparse_layers_that_disagree_are_refused(tmp_path: Path) -> None:
    MiniGraph(mixers=("sparse", "sparse")).write(tmp_path)

    def change_stride(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.name == "layers.1.mixer.attention")
        next(attribute for attribute in node.attribute if attribute.name == "kernel_stride").i = 32

    edit(tmp_path, change_stride)
    with pytest.raises(ShapeError, match=r"layers\.0\.mixer\.attention and layers\.1\.mixer\.attention differ"):
        read_graph(tmp_path).sparse_sizes()
