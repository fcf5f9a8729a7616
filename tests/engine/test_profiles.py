"""Shapes of the two profiles."""

from __future__ import annotations

import pytest
from support.graphs import MiniGraph

from sala_export.checkpoint.config import SparseConfig
from sala_export.engine.graph import EngineGraph, SparseSizes
from sala_export.engine.graph_reader import read_graph
from sala_export.engine.profiles import Profile, ShapeRange, make_profiles
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> EngineGraph:
    folder = tmp_path_factory.mktemp("graph")
    return read_graph(MiniGraph(mixers=("lightning", "sparse")).write(folder))


def ranges(profile: Profile) -> dict[str, ShapeRange]:
    return {shape.name: shape for shape in profile.inputs}


def test_profiles_differ_in_tokens_and_share_the_caches(graph: EngineGraph) -> None:
    request = EngineRequest.from_options(load_target("a6000"), max_context=5000, prefill_chunk=300, max_batch=2)
    prefill, decode = make_profiles(graph, request)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert ranges(prefill)["input_ids"] == ShapeRange(name="input_ids", min=(1, 1), opt=(2, 300), max=(2, 300))
    assert ranges(decode)["input_ids"] == ShapeRange(name="input_ids", min=(1, 1), opt=(2, 1), max=(2, 1))
    for name in ranges(prefill):
        if name.startswith("past_key_values"):
            assert ranges(prefill)[name] == ranges(decode)[name]
    key = ranges(decode)["past_key_values.1.key"]
    assert (key.min, key.opt, key.max) == ((1, 2, 64, 64), (2, 2, 5000, 64), (2, 2, 5000, 64))
    # (5000 - 32) // 16 + 1 and (5000 - 128) // 64 + 1 complete windows; at one block, 3 and none.
    k1, k2 = ranges(decode)["past_key_values.1.k1"], ranges(decode)["past_key_values.1.k2"]
    assert (k1.min[2], k1.max[2]) == (3, 311)
    assert (k2.min[2], k2.max[2]) == (1, 77)
    assert [spec.name for spec in graph.inputs] == list(ranges(decode)), "weights have no ranges"


def test_context_below_one_block_has_one_capacity(graph: EngineGraph) -> None:
    request = EngineRequest.from_options(load_target("a6000"), max_context=33)
    key = ranges(make_profiles(graph, request)[0])["past_key_values.1.key"]
    assert key.min == key.max == (1, 2, 33, 64)


@pytest.mark.parametrize("capacity", [1, 31, 32, 47, 48, 127, 128, 191, 192, 1000, 1_048_576])
def test_compressed_capacities_follow_the_model_configuration(capacity: int) -> None:
    model = SparseConfig(kernel_size=32, kernel_stride=16, block_size=64)
    sizes = SparseSizes(kernel_size=32, kernel_stride=16, block_size=64)
    assert sizes.k1_capacity(capacity) == max(1, model.k1_count(capacity))
    assert sizes.k2_capacity(capacity) == max(1, model.k2_count(capacity))
