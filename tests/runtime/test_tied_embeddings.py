"""A model whose head is its embedding: stored once, and the same answers as of the model with both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.building.planned_graph import planned_graph
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.folder import INDEX_FILE
from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.engine_form import export_engine_graph
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.specs import Precision
from sala_export.torch_runtime.load import load_torch

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROMPT = [1, 5, 300, 7, 7, 42, 500, 11, 3]
PRECISIONS = [Precision.BF16, Precision.INT8, Precision.INT4]


def write(directory: Path, precision: Precision, *, tied: bool) -> Path:
    """The tiny model with its embedding as the head, stored once or twice."""
    copy_checkpoint(tiny_checkpoint(2, precision), directory)
    shards = sorted(directory.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for file in (*shards, directory / INDEX_FILE):
        file.unlink(missing_ok=True)
    del tensors[HEAD]
    if not tied:
        tensors[HEAD] = tensors[EMBEDDING].clone()
    save_file(tensors, directory / "model.safetensors")
    edit_json(directory / "config.json", lambda config: config.update(tie_word_embeddings=tied))
    return directory


@pytest.fixture(scope="module", params=PRECISIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Precision]:
    folder = tmp_path_factory.mktemp("tied")
    tied, both = (write(folder / str(tied), request.param, tied=tied) for tied in (True, False))
    return tied, both, request.param


def test_bundles_give_the_same_numbers(pair: tuple[Path, Path, Precision], tmp_path: Path) -> None:
    """Through the C++ runtime on ONNX Runtime. The embedding is one tensor of the bundle."""
    tied, both = (write_cpu_bundle(source, tmp_path / source.name) for source in pair[:2])
    manifest = Bundle.open(tied).manifest
    assert EMBEDDING in manifest.weights.tensors
    assert HEAD not in manifest.weights.tensors
    readers = {weight.spec.name for weight in manifest.graph.cpu.weights if EMBEDDING in weight.parts[0].tensors}
    assert readers == {EMBEDDING}
    sessions = [sala_export.load(bundle).session(max_context=64) for bundle in (tied, both)]
    for ids in (PROMPT, [9], [8]):
        one, other = (session.prefill(ids) for session in sessions)
        np.testing.assert_array_equal(one, other)


def test_weights_of_a_tied_model_run_on_a_bundle_of_another(tmp_path: Path) -> None:
    tied = write(tmp_path / "tied", Precision.BF16, tied=True)
    bundle = write_cpu_bundle(tied, tmp_path / "bundle", include_weights=False)
    whole = write_cpu_bundle(tied, tmp_path / "whole")
    models = sala_export.load(bundle, weights=tied), sala_export.load(whole)
    given, own = (model.session(max_context=64).prefill(PROMPT) for model in models)
    np.testing.assert_array_equal(given, own)


def test_torch_runtime_holds_it_once(tmp_path: Path) -> None:
    tied, both = (
        load_torch(write(tmp_path / str(tied), Precision.BF16, tied=tied), device="cpu") for tied in (True, False)
    )
    one, other = (model.session(max_context=64).prefill(PROMPT) for model in (tied, both))
    np.testing.assert_array_equal(one, other)
    reference = tied.reference.model
    assert reference.lm_head.weight.data_ptr() == reference.model.embed_tokens.weight.data_ptr()
    saved = both.memory(64).weights_bytes - tied.memory(64).weights_bytes
    assert saved == reference.lm_head.weight.numel() * reference.lm_head.weight.element_size()


def test_graphs_take_the_embedding_once(pair: tuple[Path, Path, Precision], tmp_path: Path) -> None:
    tied, both, precision = pair
    checkpoint = Checkpoint.open(tied)
    export_graph(checkpoint, tmp_path, precision)
    graph = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False).graph
    initializers = Counter(tensor.name for tensor in graph.initializer)
    assert (initializers[EMBEDDING], initializers[HEAD]) == (1, 0)
    written = export_engine_graph(checkpoint, tmp_path, precision)
    inputs = [weight.spec.name for weight in written.weights if EMBEDDING in weight.parts[0].tensors]
    assert inputs == [EMBEDDING]
    assert Checkpoint.open(both).weight_bytes() - checkpoint.weight_bytes() == checkpoint.locations[EMBEDDING].length


def test_plan_counts_it_once(pair: tuple[Path, Path, Precision]) -> None:
    tied, both, precision = pair
    graphs = [
        planned_graph(checkpoint.config, precision, checkpoint.quantization)
        for checkpoint in map(Checkpoint.open, (tied, both))
    ]
    size = Checkpoint.open(tied).locations[EMBEDDING].length
    assert graphs[1].weights_bytes - graphs[0].weights_bytes == size
