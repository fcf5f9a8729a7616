"""InfLLMv2Attention on the CPU through ONNX Runtime, against the reference in float64.

Outputs are compared on the rows where rounding cannot change a selection: those whose margin at the cut is 0 (a tie,
decided by the index) or above MARGIN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from support.closeness import FLOAT32_TOLERANCE, assert_close
from support.cpu_operators import CpuOperator, int32, model, runnable_simd_levels, session_options, simd_level
from support.oracles import SparseSizes
from support.sparse_calls import Cache, projections, windows
from torch import Tensor

from sala_export.ops.infllmv2_attention.reference import infllmv2_attention, select_blocks
from sala_export.ops.infllmv2_attention.schema import CONTRACT

ORT_ERRORS = (Fail, InvalidArgument, RuntimeException)
MARGIN = 1e-4
TOLERANCE = {torch.float32: FLOAT32_TOLERANCE, torch.float16: FLOAT32_TOLERANCE, torch.bfloat16: 2**-8}
"""Of the largest output, by type of the caches. With bfloat16 the weights of values are rounded to 8 bits."""
SHORT = (torch.bfloat16, torch.float16)

SMALL = SparseSizes(
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    scale=1 / math.sqrt(32),
    kernel_size=8,
    kernel_stride=4,
    block_size=16,
    topk=4,
    window_size=48,
    init_blocks=1,
    dense_len=0,
)
"""Seven blocks of 16 tokens: rows from 112 on choose."""

PUBLISHED = SparseSizes(
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    scale=1 / math.sqrt(128),
    kernel_size=32,
    kernel_stride=16,
    block_size=64,
    topk=6,
    window_size=256,
    init_blocks=1,
    dense_len=-1,
)
"""The published head layout and windows, with fewer blocks so that short contexts already choose."""


def chunk_inputs(qkvg: Tensor, past: Sequence[int], context: Sequence[int], cache: Cache) -> list[Tensor]:
    return [qkvg, int32(past), int32(context), *cache.tensors()]


def operator_of(sizes: SparseSizes, dtype: torch.dtype = torch.float32, threads: int = 2) -> CpuOperator:
    return CpuOperator(CONTRACT, asdict(sizes), threads, dtype)


def reference_inputs(inputs: Sequence[Tensor], sizes: SparseSizes) -> tuple[Tensor, Cache]:
    """`qkvg` in float64 and a copy of the caches, for the rule of their type.

    Caches of 16 bits stay in their type, so that the reference rounds what it appends. With bfloat16 queries are
    rounded too, as on a GPU.
    """
    dtype = inputs[3].dtype
    qkvg = inputs[0].double()
    if dtype == torch.bfloat16:
        width = sizes.num_heads * sizes.head_dim
        qkvg[..., :width] = inputs[0][..., :width].bfloat16()
    k, v, k1, k2 = (x.double() if dtype == torch.float32 else x.clone() for x in inputs[3:])
    return qkvg, Cache(k=k, v=v, k1=k1, k2=k2)


def filled(qkvg: Tensor, past: Sequence[int], sizes: SparseSizes, capacity: int, dtype: torch.dtype) -> Cache:
    """Caches with the first past[b] tokens of `qkvg` [B, N, ...] appended, the rest NaN."""
    cache = Cache.empty(len(past), capacity, sizes, dtype)
    q_width, kv_width = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    for b, length in enumerate(past):
        k, v = (
            x.reshape(length, sizes.num_kv_heads, sizes.head_dim).transpose(0, 1)
            for x in qkvg[b, :length, q_width : q_width + 2 * kv_width].split(kv_width, dim=-1)
        )
        cache.k[b, :, :length], cache.v[b, :, :length] = k, v
        for compressed, factor in ((cache.k1, 1), (cache.k2, 4)):
            size, stride = factor * sizes.kernel_size, factor * sizes.kernel_stride
            if length >= size:
                means = cache.k[b, :, :length].double().unfold(1, size, stride).mean(-1)
                compressed[b, :, : means.shape[1]] = means
    return cache


def clear_rows(qkvg: Tensor, past: int, cache: Cache, row: int, sizes: SparseSizes) -> Tensor:
    """Which rows [T] of one batch entry have a selection that rounding cannot change; caches after the chunk."""
    tokens = len(qkvg)
    group = sizes.num_heads // sizes.num_kv_heads
    q = qkvg[:, : sizes.num_heads * sizes.head_dim].reshape(tokens, sizes.num_kv_heads, group, sizes.head_dim)
    attributes = asdict(sizes)
    for unused in ("num_heads", "num_kv_heads", "head_dim", "dense_len"):
        del attributes[unused]
    positions = torch.arange(past, past + tokens)
    selection = select_blocks(q.permute(1, 2, 0, 3).double(), cache.k1[row], cache.k2[row], positions, **attributes)
    # Blocks after the row's own have the score -inf and are no choice.
    infinite = torch.where(selection.score == -math.inf, -1.0, selection.score)
    ordered = infinite.sort(dim=-1, descending=True).values
    if ordered.shape[-1] <= sizes.taken_blocks:
        return torch.ones(tokens, dtype=torch.bool)
    last, refused = ordered[..., sizes.taken_blocks - 1], ordered[..., sizes.taken_blocks]
    margin = torch.where((refused < 0) | last.isinf(), math.inf, (last - refused) / last.clamp(min=1e-300))
    return ((margin == 0) | (margin > MARGIN)).all(0)


def check(inputs: list[Tensor], sizes: SparseSizes, operator: CpuOperator | None = None) -> tuple[Tensor, ...]:
    """Runs the operator, compares `y` and the valid rows of the caches with the reference, and returns all outputs."""
    dtype = inputs[3].dtype
    operator = operator or operator_of(sizes, dtype)
    before = [x.clone() for x in inputs]
    outputs = operator(*inputs)
    for x, old in zip(inputs, before, strict=True):
        assert torch.equal(x.nan_to_num(), old.nan_to_num())
    past, context = inputs[1:3]
    qkvg, cache = reference_inputs(inputs, sizes)
    y = infllmv2_attention(qkvg, past, context, *cache.tensors(), **asdict(sizes))
    compared = torch.zeros(y.shape[:2], dtype=torch.bool)
    for b in range(len(qkvg)):
        is_sparse = int(context[b]) >= sizes.dense_len
        compared[b] = clear_rows(qkvg[b], int(past[b]), cache, b, sizes) if is_sparse else True
    assert compared.float().mean() > 0.9
    assert_close(outputs[0][compared], y[compared], TOLERANCE[dtype])
    for actual, expected in zip(outputs[1:], cache.tensors(), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        # A mean near the middle of two numbers of 16 bits may become either.
        assert_close(actual.nan_to_num(), expected.nan_to_num(), max(FLOAT32_TOLERANCE, torch.finfo(dtype).eps / 2))
    return outputs


def case(
    sizes: SparseSizes,
    tokens: int,
    past: Sequence[int],
    *,
    seed: int = 0,
    context: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Inputs of one chunk of `tokens` after past[b] tokens, in caches with a few rows to spare."""
    longest = max(past) + tokens
    qkvg = torch.stack([projections(longest, sizes, seed + b) for b in range(len(past))])
    cache = filled(qkvg, past, sizes, longest + 5, dtype)
    chunk = torch.stack([row[p : p + tokens] for row, p in zip(qkvg, past, strict=True)])
    lengths = [context or p + tokens for p in past]
    return chunk_inputs(chunk, past, lengths, cache)


@pytest.mark.parametrize("tokens", [1, 3, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize("past", [[0], [129], [700, 31]])
def test_sparse_chunk_equals_float64_reference(past: list[int], tokens: int) -> None:
    check(case(SMALL, tokens, past, seed=tokens), SMALL)


@pytest.mark.parametrize("tokens", [1, 4, 5, 257])
@pytest.mark.parametrize("past", [[0], [37, 500]])
def test_dense_chunk_equals_float64_reference(past: list[int], tokens: int) -> None:
    sizes = replace(SMALL, dense_len=10_000)
    check(case(sizes, tokens, past, seed=tokens), sizes)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("dense_len", [0, 10_000])
@pytest.mark.parametrize("tokens", [1, 3, 65, 257])
@pytest.mark.parametrize("past", [[0], [700, 31]])
def test_caches_of_16_bits_equal_the_reference(
    past: list[int], tokens: int, dense_len: int, dtype: torch.dtype
) -> None:
    sizes = replace(SMALL, dense_len=dense_len)
    check(case(sizes, tokens, past, seed=tokens, dtype=dtype), sizes)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim"), [(1, 6, 2, 48), (70, 40, 1, 144)])
@pytest.mark.parametrize("level", runnable_simd_levels())
def test_every_simd_level_takes_caches_of_16_bits(
    level: str, tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    sizes = replace(SMALL, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=1 / math.sqrt(head_dim))
    with simd_level(level):
        check(case(sizes, tokens, [300], dtype=dtype), sizes)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("level", runnable_simd_levels())
def test_numbers_are_appended_and_read_as_their_type_says(level: str, dtype: torch.dtype) -> None:
    """Keys that are every finite number of 16 bits, twice in a row: the mean of two equal keys is that key."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    # Twice a number of bfloat16 must be finite in float32.
    numbers = every[every.isfinite() & (every.float().abs() < 2.0**127)]
    width = SMALL.num_kv_heads * SMALL.head_dim
    rows = numbers[: len(numbers) // width * width].reshape(-1, width).repeat_interleave(2, dim=0)
    sizes = replace(SMALL, num_heads=2, kernel_size=2, kernel_stride=1, dense_len=2**30)
    qkvg = torch.zeros(1, len(rows), 4 * width)
    qkvg[0, :, width : 2 * width] = rows.float()
    cache = Cache.empty(1, len(rows), sizes, dtype)
    with simd_level(level):
        _, keys, _, means, _ = operator_of(sizes, dtype)(*chunk_inputs(qkvg, [0], [len(rows)], cache))
    expected = rows.reshape(len(rows), SMALL.num_kv_heads, SMALL.head_dim).transpose(0, 1)
    assert torch.equal(keys[0], expected)
    assert torch.equal(means[0, :, ::2], expected[:, ::2])


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("level", runnable_simd_levels())
def test_appended_numbers_are_rounded_to_nearest_even(level: str, dtype: torch.dtype) -> None:
    """Middles between neighbours, numbers beside them, subnormal ones, those too large, and what is no number."""
    near = torch.arange(2**15 - 2**10, dtype=torch.int32).to(torch.int16).view(dtype).float()
    middles = (near[1:] + near[:-1]) / 2
    middles = middles[middles.isfinite()]
    values = torch.cat((middles, middles.nextafter(torch.tensor(0.0)), middles.nextafter(torch.tensor(math.inf))))
    extremes = [0.0, math.inf, math.nan, 1e-45, 65519.996, 65520.0, 3.4e38, 1e-8]
    values = torch.cat((values, torch.tensor(extremes)))
    values = torch.cat((values, -values))
    width = SMALL.num_kv_heads * SMALL.head_dim
    rows = torch.nn.functional.pad(values, (0, -len(values) % width)).reshape(-1, width)
    sizes = replace(SMALL, num_heads=2, dense_len=2**30)
    qkvg = torch.zeros(1, len(rows), 4 * width)
    qkvg[0, :, 2 * width : 3 * width] = rows
    cache = Cache.empty(1, len(rows), sizes, dtype)
    with simd_level(level):
        actual = operator_of(sizes, dtype)(*chunk_inputs(qkvg, [0], [len(rows)], cache))[2][0]
    expected = rows.reshape(len(rows), SMALL.num_kv_heads, SMALL.head_dim).transpose(0, 1).to(dtype)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (16, 1), (32, 2), (40, 1)])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 70])
def test_head_layouts(heads: int, kv_heads: int, head_dim: int, tokens: int) -> None:
    sizes = replace(SMALL, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=1 / math.sqrt(head_dim))
    check(case(sizes, tokens, [300]), sizes)


@pytest.mark.parametrize(("tokens", "past"), [(1, 2000), (900, 1100)])
def test_published_layout(tokens: int, past: int) -> None:
    check(case(PUBLISHED, tokens, [past]), PUBLISHED)


@pytest.mark.parametrize(
    "changes",
    [
        {"init_blocks": 0},
        {"init_blocks": 3, "window_size": 0},
        {"topk": 2, "window_size": 16},
        {"kernel_size": 24, "kernel_stride": 8},
        {"kernel_stride": 1, "kernel_size": 3},
        {"kernel_stride": 16, "kernel_size": 17, "block_size": 16},
        {"topk": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [2, 200])
def test_other_geometries(changes: dict[str, int], tokens: int) -> None:
    sizes = replace(SMALL, **changes)
    check(case(sizes, tokens, [333]), sizes)


@pytest.mark.parametrize("tokens", [1, 40, 300])
@pytest.mark.parametrize("level", runnable_simd_levels())
def test_every_simd_level_equals_float64_reference(level: str, tokens: int) -> None:
    sizes = replace(SMALL, num_heads=24, head_dim=64)
    with simd_level(level):
        check(case(sizes, tokens, [400, 7]), sizes)


def test_batch_entries_may_be_dense_and_sparse() -> None:
    sizes = replace(SMALL, dense_len=300)
    inputs = case(sizes, 40, [100, 500])
    check(inputs, sizes)


def test_context_length_decides_and_nothing_else() -> None:
    sizes = replace(SMALL, dense_len=1000)
    inputs = case(sizes, 50, [600])
    dense = check(inputs, sizes)
    inputs[2] = int32([1000])
    sparse = check(inputs, sizes)
    assert not torch.allclose(dense[0], sparse[0], atol=1e-3)
    inputs[2] = int32([9000])
    assert torch.equal(CpuOperator(CONTRACT, asdict(sizes))(*inputs)[0], sparse[0])


def test_rows_that_see_all_blocks_are_equal_in_sparse_and_dense() -> None:
    tokens = SMALL.taken_blocks * SMALL.block_size + 30
    sparse = CpuOperator(CONTRACT, asdict(SMALL))(*case(SMALL, tokens, [0]))[0]
    dense = CpuOperator(CONTRACT, asdict(replace(SMALL, dense_len=2**30)))(*case(SMALL, tokens, [0]))[0]
    same = SMALL.taken_blocks * SMALL.block_size
    assert torch.equal(sparse[:, :same], dense[:, :same])
    assert not torch.allclose(sparse[:, same:], dense[:, same:], atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 20])
def test_choice_among_many_blocks(tokens: int) -> None:
    """More candidates than a selector holds at once, so that it drops some on the way."""
    check(case(SMALL, tokens, [10_000]), SMALL)


@pytest.mark.parametrize(("tokens", "length"), [(1, 500), (90, 500), (1, 10_000), (20, 10_000)])
def test_equal_keys_take_the_lowest_blocks(tokens: int, length: int) -> None:
    """All scores are equal then, so the result is that of the first blocks; values differ from token to token."""
    inputs = case(SMALL, tokens, [length])
    past = inputs[1][0]
    # Eighths: their means are exact in float32, so that windows of the cache and of the chunk agree to the bit.
    key = (8 * torch.randn(SMALL.head_dim, generator=torch.Generator().manual_seed(1))).round() / 8
    q_width = SMALL.num_heads * SMALL.head_dim
    inputs[0][:, :, q_width : q_width + 2 * SMALL.head_dim] = key.repeat(2)
    inputs[3][:, :, :past] = key
    inputs[5][:, :, : windows(int(past), 8, 4)] = key
    inputs[6][:, :, : windows(int(past), 32, 16)] = key
    check(inputs, SMALL)


@pytest.mark.parametrize("tokens", [1, 60])
def test_overflowing_probability_is_clamped(tokens: int) -> None:
    """A window of keys far above the one old k2 that is visible: exp(a - m) is infinite, and ties are by index."""
    sizes = replace(SMALL, num_heads=1, num_kv_heads=1, topk=3, window_size=16)
    inputs = case(sizes, tokens, [150])
    inputs[0][..., : sizes.head_dim] = 60.0
    inputs[5][:, :, :36] = -1.0
    for hot in (5, 13, 21, 27):
        inputs[5][:, :, hot] = 1.0
    inputs[6][:, :, :8] = -1.0
    y = CpuOperator(CONTRACT, asdict(sizes))(*inputs)[0]
    cache = Cache(k=inputs[3].clone(), v=inputs[4].clone(), k1=inputs[5].clone(), k2=inputs[6].clone())
    assert_close(y, infllmv2_attention(*inputs[:3], *cache.tensors(), **asdict(sizes)))
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [1, 70])
def test_caches_bound_to_one_buffer_are_updated_in_place(tokens: int, dtype: torch.dtype) -> None:
    inputs = case(SMALL, tokens, [210, 98], dtype=dtype)
    operator = operator_of(SMALL, dtype)
    expected = operator(*inputs)
    y = operator.update(*inputs)
    assert torch.equal(y, expected[0])
    for actual, wanted in zip(inputs[3:], expected[1:], strict=True):
        assert torch.equal(actual.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("chunks", [[1] * 30 + [570], [7] * 80 + [40], [64, 536], [300, 1, 299], [599, 1]])
@pytest.mark.parametrize("dense_len", [0, 10_000])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_chunks_equal_one_prefill(chunks: list[int], dense_len: int, dtype: torch.dtype) -> None:
    sizes = replace(SMALL, dense_len=dense_len)
    tokens = sum(chunks)
    qkvg = projections(tokens, sizes, seed=2)[None]
    operator = operator_of(sizes, dtype)
    whole = operator(*chunk_inputs(qkvg, [0], [tokens], Cache.empty(1, tokens, sizes, dtype)))
    cache, outputs, past = Cache.empty(1, tokens, sizes, dtype), [], 0
    for chunk in chunks:
        part = qkvg[:, past : past + chunk].contiguous()
        outputs.append(operator.update(*chunk_inputs(part, [past], [tokens], cache)))
        past += chunk
    assert_close(torch.cat(outputs, dim=1), whole[0], TOLERANCE[dtype])
    for actual, wanted in zip(cache.tensors(), whole[1:], strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("tokens", [1, 333])
def test_result_does_not_depend_on_thread_count(tokens: int) -> None:
    inputs = case(SMALL, tokens, [800])
    one = CpuOperator(CONTRACT, asdict(SMALL), threads=1)(*inputs)
    for threads in (2, 3):
        several = CpuOperator(CONTRACT, asdict(SMALL), threads=threads)(*inputs)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, several, strict=True))


def test_caches_of_two_types_are_refused() -> None:
    graph = model(CONTRACT, asdict(SMALL), torch.bfloat16)
    keys = next(value for value in graph.graph.input if value.name == "k_cache")
    keys.type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(Fail, match="InfLLMv2Attention"):
        onnxruntime.InferenceSession(graph.SerializeToString(), session_options())


def test_attributes_of_the_tensorrt_node_are_ignored() -> None:
    inputs = case(SMALL, 5, [0])
    extra = {"plugin_namespace": "sala", "plugin_version": "1"}
    check(inputs, SMALL, CpuOperator(CONTRACT, asdict(SMALL) | extra))


@pytest.mark.parametrize("missing", [a.name for a in CONTRACT.attributes])
def test_missing_attribute_is_refused_by_name(missing: str) -> None:
    rest = {name: value for name, value in asdict(SMALL).items() if name != missing}
    with pytest.raises(ORT_ERRORS, match=f"InfLLMv2Attention.*attribute {missing}"):
        CpuOperator(CONTRACT, rest)


@pytest.mark.parametrize("index", range(7))
def test_wrong_shape_is_refused_by_name(index: int) -> None:
    inputs = case(SMALL, 5, [20])
    inputs[index] = torch.cat((inputs[index], inputs[index]), dim=-1)
    name = CONTRACT.inputs[index].name
    with pytest.raises(ORT_ERRORS, match=f"InfLLMv2Attention: {name} has shape .* expected"):
        CpuOperator(CONTRACT, asdict(SMALL))(*inputs)


@pytest.mark.parametrize(
    ("past", "context", "message"),
    [
        (-1, 100, "do not fit the cache"),
        (26, 100, "do not fit the cache"),
        (20, 24, "less than the tokens after this chunk"),
    ],
)
def test_lengths_that_contradict_the_cache_are_refused(past: int, context: int, message: str) -> None:
    inputs = case(SMALL, 5, [20])
    inputs[1], inputs[2] = int32([past]), int32([context])
    with pytest.raises(ORT_ERRORS, match=message):
        CpuOperator(CONTRACT, asdict(SMALL))(*inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "divide evenly"),
        ({"kernel_stride": 5}, "whole number of strides"),
        ({"window_size": 40}, "not a multiple of block_size"),
        ({"topk": 1}, "forced blocks must fit"),
        ({"kernel_size": 4}, "windows overlap"),
        ({"head_dim": 24}, "multiple of 16"),
    ],
)
def test_attributes_outside_the_contract_are_refused(changes: dict[str, int], message: str) -> None:
    sizes = replace(SMALL, **changes)
    width = 2 * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim
    inputs = chunk_inputs(torch.zeros(1, 5, width), [0], [5], Cache.empty(1, 64, sizes))
    with pytest.raises(ORT_ERRORS, match=message):
        CpuOperator(CONTRACT, asdict(sizes))(*inputs)


def test_compressed_caches_that_are_too_small_are_refused() -> None:
    inputs = case(SMALL, 5, [60])
    inputs[5] = inputs[5][:, :, :-1].contiguous()
    with pytest.raises(ORT_ERRORS, match="k1_cache and k2_cache hold"):
        CpuOperator(CONTRACT, asdict(SMALL))(*inputs)
