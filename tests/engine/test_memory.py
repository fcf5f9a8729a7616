"""The account of device memory, against numbers worked out by hand for the published 9B model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.graphs import MiniGraph

from sala_export.engine.graph import EngineGraph, OperatorNode
from sala_export.engine.graph_reader import read_graph
from sala_export.engine.memory import PARTIAL_SUM_BYTES, check_fits, contexts, largest_context, predict_memory
from sala_export.engine.recipe import GpuRecipe, Target, load_recipe, load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import RequestError, ShapeError
from sala_export.specs import DType, TensorSpec

GIB = 1 << 30
MIB = 1 << 20
PARAMETERS_9B = 9_477_203_968
SPARSE_LAYERS_9B = (0, 9, 16, 17, 22, 29, 30, 31)


def graph_9b() -> EngineGraph:
    """The published model, as its graph would describe it: 8 sparse and 24 lightning layers."""
    inputs = [
        TensorSpec("input_ids", DType.INT64, ("batch", "tokens")),
        TensorSpec("past_length", DType.INT32, ("batch",)),
        TensorSpec("context_length", DType.INT32, ("batch",)),
        TensorSpec("rope_cos_sin", DType.FLOAT32, ("batch", "tokens", 128)),
        TensorSpec("logit_rows", DType.INT32, ("rows",)),
    ]
    for i in range(32):
        if i in SPARSE_LAYERS_9B:
            capacities = {"key": "capacity", "value": "capacity", "k1": "capacity_k1", "k2": "capacity_k2"}
            for role, capacity in capacities.items():
                inputs.append(TensorSpec(f"past_key_values.{i}.{role}", DType.BFLOAT16, ("batch", 2, capacity, 128)))
        else:
            inputs.append(TensorSpec(f"past_key_values.{i}.state", DType.FLOAT32, ("batch", 32, 128, 128)))
    sparse = OperatorNode(
        name="layers.0.self_attn/InfLLMv2Attention",
        op_type="InfLLMv2Attention",
        attributes={
            "num_heads": 32,
            "num_kv_heads": 2,
            "head_dim": 128,
            "kernel_size": 32,
            "kernel_stride": 16,
            "block_size": 64,
        },
    )
    return EngineGraph(
        path=Path("engine.onnx"),
        inputs=tuple(inputs),
        weights=(TensorSpec("all", DType.BFLOAT16, (PARAMETERS_9B,)),),
        outputs=(TensorSpec("logits", DType.FLOAT32, ("rows", 73448)),),
        operators=(sparse,),
        parameters=PARAMETERS_9B,
        quantized_parameters=0,
        constant_bytes=0,
        hidden_size=4096,
        widest_projection=2 * 16384,
        activation_dtype=DType.BFLOAT16,
    )


def request_9b(gpu: str, max_context: int, prefill_chunk: int = 8192) -> EngineRequest:
    return EngineRequest.from_options(load_target(gpu), max_context=max_context, prefill_chunk=prefill_chunk)


def test_account_of_9b_at_a_million_tokens() -> None:
    memory = predict_memory(graph_9b(), request_9b("rtx5090", 1 << 20))
    assert memory.weights_bytes / GIB == pytest.approx(17.65, abs=0.01)
    # 8 layers x 2 heads x 128 channels x K and V x 2 bytes = 8192 bytes per token.
    assert memory.key_value_bytes == 8192 << 20
    # k1 has a key for 16 tokens, k2 for 64, each of 8 x 2 x 128 x 2 = 4096 bytes: 256 + 64 bytes per token, less the
    # last window of each.
    assert memory.compressed_key_bytes == (320 << 20) - 2 * 4096
    assert memory.state_bytes == 24 * 32 * 128 * 128 * 4 == 48 * MIB
    # Three hidden rows, gate_up and its product: what TensorRT plans, to the byte. And partial sums.
    assert memory.activation_bytes == 960 * MIB + PARTIAL_SUM_BYTES
    # ids, two lengths, RoPE rows, logits
    assert memory.io_bytes == 8192 * 8 + 2 * 4 + 256 * 4 + 8192 * 128 * 4 + 73448 * 4
    assert memory.total_bytes == sum(memory.parts().values())


def test_published_claim_that_a_million_tokens_fit_an_rtx5090() -> None:
    request = request_9b("rtx5090", 1 << 20)
    check_fits(graph_9b(), request, predict_memory(graph_9b(), request))


def test_activations_do_not_depend_on_the_context() -> None:
    short, long = (predict_memory(graph_9b(), request_9b("a6000", context)) for context in (8192, 1 << 20))
    assert short.activation_bytes == long.activation_bytes
    assert short.state_bytes == long.state_bytes


@pytest.mark.parametrize(("gpu", "expected"), [("rtx5090", "1502K"), ("rtx4090", "534K")])
def test_context_that_does_not_fit_names_the_largest_that_does(gpu: str, expected: str) -> None:
    # 34190917632 (25757220864) bytes, less weights 18954407936, activations 1207959552, reserve 1073741824, state
    # 50331648, and in and out 4553640, over 8512 bytes per token: 1515498 (524697) tokens, rounded down to 1K.
    graph, request = graph_9b(), request_9b(gpu, 2 << 20)
    with pytest.raises(
        RequestError, match=rf"--max-context 2M needs .*: the largest that fits is --max-context {expected}$"
    ):
        check_fits(graph, request, predict_memory(graph, request))


@pytest.mark.parametrize("gpu", ["rtx5090", "rtx4090"])
def test_named_context_fits_and_the_next_does_not(gpu: str) -> None:
    graph, request = graph_9b(), request_9b(gpu, 2 << 20)
    context = largest_context(graph, request, predict_memory(graph, request), load_recipe(gpu))
    assert context is not None
    assert context % 1024 == 0
    largest = replace(request, max_context=context)
    check_fits(graph, largest, predict_memory(graph, largest))
    beyond = replace(request, max_context=context + 1024)
    with pytest.raises(RequestError):
        check_fits(graph, beyond, predict_memory(graph, beyond))


def test_weights_that_leave_no_room_say_so_with_every_part() -> None:
    graph = replace(graph_9b(), constant_bytes=40 * GIB - 2 * PARAMETERS_9B)
    request = request_9b("rtx5090", 1 << 20)
    with pytest.raises(RequestError, match=r"weights 40\.00 GiB, key_value 8\.00 GiB, .*no context fits; lower"):
        check_fits(graph, request, predict_memory(graph, request))


def test_no_context_below_the_chunk_is_offered() -> None:
    # 16K tokens of caches are left, and the chunk is larger.
    request = request_9b("rtx5090", 65536, prefill_chunk=32768)
    spare = predict_memory(graph_9b(), replace(request, max_context=32768)).total_bytes - 16384 * 8512
    card = load_recipe("rtx5090")
    tight = replace(request, target=Target.of(replace(card, memory_bytes=spare + card.reserve_bytes)))
    with pytest.raises(RequestError, match=r"no context fits; lower --prefill-chunk"):
        check_fits(graph_9b(), tight, predict_memory(graph_9b(), tight))


def test_card_of_16_gb_sends_to_a_smaller_precision_which_fits_its_default_context() -> None:
    for gpu in ("rtx4080", "rtx5080", "rtx5070ti"):
        request = EngineRequest.from_options(Target.of(load_recipe(gpu)))
        with pytest.raises(RequestError, match=r"no context fits; .*, or take --precision int8$"):
            check_fits(graph_9b(), request, predict_memory(graph_9b(), request))
        # What docs/plan.md says of int8 and fp8: 9.89 GiB.
        smaller = replace(graph_9b(), weights=(TensorSpec("all", DType.INT8, (round(9.89 * GIB),)),))
        check_fits(smaller, request, predict_memory(smaller, request))


def test_batch_adds_states_and_pages_but_neither_weights_nor_activations() -> None:
    one = predict_memory(graph_9b(), request_9b("a6000", 65536))
    three = predict_memory(graph_9b(), replace(request_9b("a6000", 65536), max_batch=3))
    assert three.weights_bytes == one.weights_bytes
    assert three.activation_bytes == one.activation_bytes
    # 8 layers of keys and values of 2 heads, of which each further session fills a page in part.
    assert three.key_value_bytes == one.key_value_bytes + 2 * 8 * 2 * 2 * 2 * MIB
    # 4095 k1 and 1023 k2 fill a page of both heads each, and so much again.
    assert three.compressed_key_bytes == 8 * 2 * (2 + 2 * 2 * 2) * MIB
    assert three.state_bytes == 2 * 3 * one.state_bytes, "each session's, and that in the batch"
    # A chunk of one session has more ids and RoPE rows, a batch more lengths and logits.
    assert three.io_bytes == 8192 * 8 + 2 * 3 * 4 + 256 * 4 + 8192 * 128 * 4 + 3 * 73448 * 4


def test_head_is_the_fullest_moment_of_a_short_chunk() -> None:
    # The chunk's rows of the stream, and for each a row and its logits in bf16, are more than three rows and the MLP.
    short = predict_memory(graph_9b(), request_9b("a6000", 65536, prefill_chunk=256))
    assert short.activation_bytes == 256 * (2 * 4096 + 73448) * 2 + PARTIAL_SUM_BYTES


def test_activations_of_a_batch_beyond_the_chunk_follow_the_batch() -> None:
    request = replace(request_9b("a6000", 8192, prefill_chunk=100), max_batch=150)
    alone = predict_memory(graph_9b(), request_9b("a6000", 8192, prefill_chunk=150))
    assert predict_memory(graph_9b(), request).activation_bytes == alone.activation_bytes


def test_context_of_a_batch_fills_whole_pages() -> None:
    # A row of a layer's keys has 512 bytes, so 4096 fill a page.
    exact, rounded = (
        predict_memory(graph_9b(), replace(request_9b("a6000", context), max_batch=2)) for context in (12288, 8193)
    )
    assert exact == rounded


def test_batch_that_does_not_fit_names_itself_and_the_largest_context_that_does() -> None:
    graph, eight = graph_9b(), replace(request_9b("rtx5090", 1 << 20), max_batch=8)
    check_fits(graph, eight, predict_memory(graph, eight))  # a book of 1M tokens and its forks
    request = replace(eight, max_batch=32)
    with pytest.raises(RequestError, match=r"--max-context 1M with --max-batch 32 needs .* is --max-context 656K$"):
        check_fits(graph, request, predict_memory(graph, request))
    tight = replace(graph, constant_bytes=40 * GIB)
    with pytest.raises(RequestError, match=r"no context fits; lower --prefill-chunk, --max-batch or --layers, or "):
        check_fits(tight, request, predict_memory(tight, request))


def test_account_of_a_real_graph_follows_its_inputs(tmp_path: Path) -> None:
    graph = read_graph(MiniGraph(mixers=("lightning", "sparse", "lightning")).write(tmp_path))
    request = request_9b("a6000", 1000, prefill_chunk=64)
    memory = predict_memory(graph, request)
    assert memory.weights_bytes == graph.weights_bytes
    assert memory.state_bytes == 2 * 32 * 64 * 64 * 4
    assert memory.key_value_bytes == 2 * 2 * 1000 * 64 * 2
    assert memory.compressed_key_bytes == (61 + 14) * 2 * 64 * 2


def test_unknown_cache_is_refused() -> None:
    graph = graph_9b()
    extra = TensorSpec("past_key_values.0.conv", DType.FLOAT32, ("batch", 4))
    with pytest.raises(ShapeError, match=r"unknown cache past_key_values\.0\.conv"):
        predict_memory(replace(graph, inputs=(*graph.inputs, extra)), request_9b("a6000", 65536))


def test_every_gpu_of_a_target_gets_the_context_that_fits_it() -> None:
    graph, request = graph_9b(), request_9b("rtx", 1 << 20)
    memory = predict_memory(graph, request)
    check_fits(graph, request, memory)
    found = {recipe.name: context for recipe, context in contexts(graph, request, memory)}
    assert found == {"a6000": 1 << 20, "rtx4090": 534 << 10, "rtx5090": 1 << 20, "a6000d": 1 << 20}


def test_context_of_the_engine_that_is_no_multiple_of_1k_is_kept_where_it_fits() -> None:
    graph, request = graph_9b(), request_9b("rtx4090,a6000", 1_000_001)
    found = [context for _, context in contexts(graph, request, predict_memory(graph, request))]
    assert found == [534 << 10, 1_000_001]


def test_gpu_of_a_target_that_holds_no_context_is_named_with_the_target_without_it() -> None:
    graph = replace(graph_9b(), constant_bytes=8 * GIB)
    request = request_9b("rtx", 1 << 20)
    with pytest.raises(
        RequestError,
        match=r"NVIDIA GeForce RTX 4090 has 23\.99 GiB \(weights 25\.65 GiB, .*reserve 1\.00 GiB\): no context fits; "
        r"lower --prefill-chunk or --layers, or leave it out with --gpu a6000,rtx5090,a6000d, "
        r"or take --precision int8$",
    ):
        check_fits(graph, request, predict_memory(graph, request))


@pytest.mark.parametrize(("spare", "is_there"), [(0, True), (-1, False)])
def test_reserve_of_the_gpu_is_left_to_others(spare: int, is_there: bool) -> None:
    graph, request = graph_9b(), request_9b("rtx5090", 8192)
    memory = predict_memory(graph, request)
    card: GpuRecipe = replace(
        load_recipe("rtx5090"), memory_bytes=memory.total_bytes + 5000 + spare, reserve_bytes=5000
    )
    assert (largest_context(graph, request, memory, card) is not None) is is_there


def test_scratch_of_a_large_operator_counts_where_it_is_the_fullest_moment() -> None:
    request = request_9b("rtx5090", 1 << 20)
    small, large = (
        predict_memory(graph_9b(), request, workspaces={"InfLLMv2Attention": size}) for size in (1 << 20, 1 << 30)
    )
    assert small == predict_memory(graph_9b(), request)
    # Two hidden rows, the packed projection and the operator's rows stand beside it.
    rows = 8192 * (2 * 4096 + 2 * (32 + 2) * 128 + 32 * 128) * 2
    assert large.activation_bytes == rows + (1 << 30) + PARTIAL_SUM_BYTES
