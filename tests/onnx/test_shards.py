"""Cutting an exported graph between layers: the pieces are the whole, in structure and in numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.checkpoints import tiny_checkpoint
from support.graph_runner import GraphRunner, InfLLMv2Attention, LightningAttention
from support.small_models import write_small_checkpoint

from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.graph import read_graph
from sala_export.errors import ExportError
from sala_export.model.signature import Signature
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.onnx.shards import write_shard
from sala_export.planned_graph import planned_graph
from sala_export.specs import Precision, stream_name

MIXERS = ("minicpm4", "lightning-attn", "lightning-attn", "minicpm4")
SPARSE = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 16,
    "topk": 2,
    "window_size": 32,
    "init_blocks": 1,
    "dense_len": 64,
}
CUTS = [(4,), (1, 3), (2, 2), (3, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 1, 1, 1)]
"""Every way to cut four layers."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoints") / "four"
    return Checkpoint.open(write_small_checkpoint(folder, MIXERS, sparse_config=SPARSE))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> tuple[Path, Signature]:
    folder = tmp_path_factory.mktemp("fp32")
    step = export_graph(checkpoint, folder, Precision.FP32, copy_weights=True)
    return folder / GRAPH_FILE, step


def cut_into(graph: Path, layers: tuple[int, ...]) -> list[Path]:
    """Shards of so many layers each, beside the graph."""
    paths, first = [], 0
    for count in layers:
        path = graph.with_name(f"{'-'.join(map(str, layers))}.{first}.onnx")
        write_shard(graph, first, count, path)
        paths.append(path)
        first += count
    return paths


def names_of(*graphs: ir.Graph) -> list[str | None]:
    """Of all nodes but constants and sizes of inputs, which every shard has for itself."""
    return [node.name for graph in graphs for node in graph if node.inputs and not str(node.name).startswith("graph/")]


class ShardRunner(GraphRunner):
    """As `GraphRunner`, with the shards in order; tensors pass from one to the next by their names."""

    def __init__(self, shards: list[Path], *arguments: object) -> None:
        super().__init__(shards[0], *arguments)
        operators = [LightningAttention, InfLLMv2Attention]
        shard_models = [onnx.load(path) for path in shards]
        self.shards = [ReferenceEvaluator(model, new_ops=operators) for model in shard_models]
        self.evaluator = self

    def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        values = dict(feeds)
        for shard in self.shards:
            given = shard.run(None, {name: values[name] for name in shard.input_names})
            values.update(zip(shard.output_names, given, strict=True))
        return [values[spec.name] for spec in self.step.outputs]


@pytest.mark.parametrize("layers", CUTS)
def test_shards_in_order_give_the_bits_of_the_whole(
    exported: tuple[Path, Signature], checkpoint: Checkpoint, layers: tuple[int, ...]
) -> None:
    path, step = exported
    ids = torch.randint(0, 97, (150,), generator=torch.Generator().manual_seed(1))
    whole = GraphRunner(path, checkpoint.config, step, len(ids))
    cut = ShardRunner(cut_into(path, layers), checkpoint.config, step, len(ids))
    for start, stop in ((0, 90), (90, 91), (91, 150)):
        expected = whole.feed(ids[start:stop], len(ids))
        assert torch.equal(cut.feed(ids[start:stop], len(ids)), expected)
        for name, cache in whole.caches.items():
            assert np.array_equal(cut.caches[name], cache), name


@pytest.mark.parametrize("layers", CUTS)
def test_every_node_and_weight_is_in_one_shard(exported: tuple[Path, Signature], layers: tuple[int, ...]) -> None:
    path, step = exported
    whole = ir.load(path).graph
    shards = [ir.load(shard).graph for shard in cut_into(path, layers)]
    assert Counter(names_of(*shards)) == Counter(names_of(whole))
    weights = Counter(name for shard in shards for name in shard.initializers if name.endswith(".weight"))
    assert weights == Counter(name for name in whole.initializers if name.endswith(".weight"))
    given = [value.name for shard in shards for value in shard.outputs]
    boundaries = [stream_name(sum(layers[:i])) for i in range(1, len(layers))]
    assert sorted(given) == sorted([spec.name for spec in step.outputs] + boundaries)
    for shard, boundary in zip(shards[1:], boundaries, strict=True):
        assert shard.inputs[0].name == boundary


def test_shards_pass_the_onnx_checker(exported: tuple[Path, Signature]) -> None:
    for shard in cut_into(exported[0], (1, 2, 1)):
        onnx.checker.check_model(str(shard))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_casts_of_weights_go_with_their_users(tmp_path: Path, checkpoint: Checkpoint, precision: Precision) -> None:
    """An fp32 checkpoint in 16 bits: one Cast per weight, none of them lost, doubled or left behind."""
    export_graph(checkpoint, tmp_path, precision)
    whole = read_graph(tmp_path)
    shards = [read_graph(tmp_path, path.name) for path in cut_into(tmp_path / GRAPH_FILE, (1, 2, 1))]
    assert sum(shard.parameters for shard in shards) == whole.parameters
    assert sum((shard.layer_weights_bytes for shard in shards), ()) == whole.layer_weights_bytes
    assert [shard.weights_bytes for shard in shards] == [sum(shard.layer_weights_bytes) for shard in shards]
    assert {shard.activation_dtype for shard in shards} == {precision.dtype}
    assert {shard.hidden_size for shard in shards} == {whole.hidden_size}
    assert shards[1].inputs[0].shape == ("batch", "tokens", whole.hidden_size)


def test_tiny_model_is_cut_as_planned(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint())
    export_graph(checkpoint, tmp_path, Precision.BF16)
    planned = planned_graph(checkpoint.config, Precision.BF16)
    shards = [read_graph(tmp_path, path.name) for path in cut_into(tmp_path / GRAPH_FILE, (2, 3))]
    assert sum((shard.layer_weights_bytes for shard in shards), ()) == planned.layer_weights_bytes
    assert [len(shard.operators) for shard in shards] == [2, 3]


@pytest.mark.parametrize(("first", "count"), [(0, 5), (4, 1), (-1, 2), (2, 0)])
def test_layers_that_are_not_there_are_refused(exported: tuple[Path, Signature], first: int, count: int) -> None:
    with pytest.raises(ExportError, match=r"cannot cut out layers .* of 4"):
        write_shard(exported[0], first, count, exported[0].with_name("none.onnx"))
    assert not exported[0].with_name("none.onnx").exists()


def test_graph_with_a_second_stream_between_layers_is_refused(exported: tuple[Path, Signature]) -> None:
    model = onnx.load(exported[0], load_external_data=False)
    into_mixer = next(node for node in model.graph.node if node.name == "layers.1.self_attn.qkvz_proj/MatMul")
    later = next(node for node in model.graph.node if node.name == "layers.3.mlp.down_proj/MatMul")
    shortcut = onnx.helper.make_node("Add", [into_mixer.output[0]] * 2, ["shortcut"], name="layers.3.mlp/Shortcut")
    model.graph.node.insert(list(model.graph.node).index(later), shortcut)
    later.input[0] = "shortcut"
    path = exported[0].with_name("shortcut.onnx")
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"layer 1 hands .* to the nodes after it|need .* of another layer"):
        write_shard(path, 2, 2, path.with_name("none.onnx"))
