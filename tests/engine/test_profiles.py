"""Shapes of the two profiles."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.graphs import MiniGraph

from sala_export.checkpoint.config import SparseConfig
from sala_export.engine.graph import EngineGraph, SparseSizes
from sala_export.engine.graph_reader import read_graph
from sala_export.engine.profiles import PAGE_BYTES, Profile, ProfileName, ShapeRange, largest_sizes, make_profiles
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> EngineGraph:
    folder = tmp_path_factory.mktemp("graph")
    return read_graph(MiniGraph(mixers=("lightning", "sparse")).write(folder))


def ranges(profile: Profile) -> dict[str, ShapeRange]:
    return {shape.name: shape for shape in profile.inputs}


def test_profiles_differ_in_batch_and_tokens_and_share_the_caches(graph: EngineGraph) -> None:
    request = EngineRequest.from_options(load_target("a6000"), max_context=5000, prefill_chunk=300, max_batch=2)
    prefill, decode = make_profiles(graph, request)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert ranges(prefill)["input_ids"] == ShapeRange(name="input_ids", min=(1, 1), opt=(1, 300), max=(1, 300))
    assert ranges(decode)["input_ids"] == ShapeRange(name="input_ids", min=(1, 1), opt=(2, 1), max=(2, 1))
    # A chunk mostly gives the logits of one token, a decode step those of all.
    assert ranges(prefill)["logit_rows"] == ShapeRange(name="logit_rows", min=(1,), opt=(1,), max=(256,))
    assert ranges(decode)["logit_rows"] == ShapeRange(name="logit_rows", min=(1,), opt=(2,), max=(2,))
    for name in ranges(prefill):
        if name.startswith("past_key_values"):
            assert ranges(prefill)[name].max == (1, *ranges(decode)[name].max[1:])
            assert ranges(prefill)[name].min == ranges(decode)[name].min
    # A row of 2 heads of 64 elements in bf16 has 256 bytes, so 8192 of them fill a page.
    key = ranges(decode)["past_key_values.1.key"]
    assert (key.min, key.opt, key.max) == ((1, 2, 64, 64), (2, 2, 8192, 64), (2, 2, 8192, 64))
    k1, k2 = ranges(decode)["past_key_values.1.k1"], ranges(decode)["past_key_values.1.k2"]
    assert (k1.min[2], k1.max[2]) == (3, 8192)
    assert (k2.min[2], k2.max[2]) == (1, 8192)
    assert [spec.name for spec in graph.inputs] == list(ranges(decode)), "weights have no ranges"


def test_sizes_of_one_session_are_those_of_its_context(graph: EngineGraph) -> None:
    request = EngineRequest.from_options(load_target("a6000"), max_context=5000, prefill_chunk=300)
    for profile in make_profiles(graph, request):
        largest = {name: shape.max for name, shape in ranges(profile).items()}
        assert largest["past_length"] == (1,)
        assert largest["past_key_values.1.key"] == largest["past_key_values.1.value"] == (1, 2, 5000, 64)
        # (5000 - 32) // 16 + 1 and (5000 - 128) // 64 + 1 complete windows.
        assert (largest["past_key_values.1.k1"][2], largest["past_key_values.1.k2"][2]) == (311, 77)


@pytest.mark.parametrize("context", [1, 8191, 8192, 8193, 1_000_000])
def test_caches_of_a_batch_end_where_a_page_does(graph: EngineGraph, context: int) -> None:
    request = EngineRequest.from_options(load_target("a6000"), max_context=context, max_batch=3)
    decode = ranges(make_profiles(graph, request)[1])
    for name, shape in decode.items():
        if name.startswith("past_key_values.1."):
            assert math.prod(shape.max[1:]) * 2 % PAGE_BYTES == 0, name
    capacity = decode["past_key_values.1.key"].max[2]
    assert context <= capacity < context + 8192
    # The windows of what the caches hold, not of what was asked for.
    sparse = graph.sparse_sizes()
    assert sparse is not None
    assert decode["past_key_values.1.k1"].max[2] == -(-sparse.k1_capacity(capacity) // 8192) * 8192


def test_batch_of_a_model_without_sparse_layers_keeps_its_sizes(tmp_path: Path) -> None:
    graph = read_graph(MiniGraph(mixers=("lightning",)).write(tmp_path))
    request = EngineRequest.from_options(load_target("a6000"), max_context=5000, max_batch=3)
    sizes = largest_sizes(graph, request, ProfileName.DECODE)
    assert sizes == {"batch": 3, "tokens": 1, "rows": 3, "capacity": 5000}


def test_chunk_gives_logits_of_no_more_tokens_than_it_has(graph: EngineGraph) -> None:
    request = EngineRequest.from_options(load_target("a6000"), max_context=5000, prefill_chunk=100)
    assert ranges(make_profiles(graph, request)[0])["logit_rows"].max == (100,)


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
