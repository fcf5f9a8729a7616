"""Selection by bounds: no bound is below what it bounds, and what is chosen is what the exact pass chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from support.bound_probes import bounds
from support.oracles import SparseSizes
from support.selection_calls import selected
from support.sparse_calls import projections
from support.sparse_outcomes import Case, Outcome, assert_selection, blocks_of, random_sequences
from support.triton_interpreter import DEVICES, call_interpreting
from torch import Tensor

from sala_export.ops.common.triton_run import served_architecture
from sala_export.ops.infllmv2_attention import tiles

LOG2_E = math.log2(math.e)
KEYS = 331
ROWS = 16


def keys_of(kind: str, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Queries [ROWS, D] and keys [KEYS, D] in float32."""
    q, k = (torch.randn(rows, dim, generator=generator) for rows in (ROWS, KEYS))
    if kind == "common direction":
        k = k + 20 * torch.randn(dim, generator=generator)
    elif kind == "outlier channels":
        k[:, :3] *= 40
        q[:, :3] /= 40
    elif kind == "few large values":
        k *= 10.0 ** torch.randint(-3, 3, (KEYS, dim), generator=generator)
        q *= 10.0 ** torch.randint(-3, 3, (ROWS, dim), generator=generator)
    elif kind == "large":
        k, q = k * 100, q * 100
    elif kind == "small":
        k, q = k * 1e-6, q * 1e-3
    elif kind == "halves":
        # As far from whole steps as can be: the first value sets the step.
        k = (torch.randint(-9, 9, (KEYS, dim), generator=generator) + 0.5) / 127
        k[:, 0] = 1
    elif kind == "some are zero":
        k[::3] = 0
        q[::2] = 0
    elif kind == "constant":
        k[:] = k[0]
    elif kind == "sample of zeros":
        # What is sampled says nothing of the rest.
        k[:: KEYS // 64] = 0
    return q, k


KINDS = ["gaussian", "common direction", "outlier channels", "few large values", "large", "small", "halves"]
KINDS += ["some are zero", "constant", "sample of zeros"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_is_below_its_logit(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    for dim, scale in ((128, 128**-0.5), (64, -0.3), (32, 1.0)):
        q, k1 = (x.to(dtype) for x in keys_of(kind, dim, generator))
        log_z = 20 * torch.randn(ROWS, generator=generator)
        found = call_interpreting(bounds, q, k1, log_z, scale)
        exact = scale * LOG2_E * k1.double() @ q.double().T - log_z.double()
        assert (found.double() >= exact).all()
        # A hundredth or two of both norms above it: what 127 steps for each of them come to.
        norms = k1.double().norm(dim=1)[:, None] * q.double().norm(dim=1)[None, :]
        if kind in ("gaussian", "large"):
            assert ((found - exact) / (abs(scale) * LOG2_E * norms)).mean() <= 0.02


def worst_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which row is farthest off when it is rounded to steps, and by what, in steps."""
    steps = torch.maximum(x.norm(dim=1) / 450, x.abs().amax(dim=1) / 127)[:, None]
    error = torch.where(steps > 0, x / steps - (x / steps).round(), 0.0)
    row = error.norm(dim=1).argmax()
    return row, error[row]


def aligned_with_a_key(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Queries of whole steps in the direction in which a key is off."""
    k = torch.randn(KEYS, 128, generator=generator)
    _, error = worst_of(k)
    q = (error / error.abs().max() * 127).round()
    return q.repeat(ROWS, 1), k


def aligned_with_queries(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys in the directions in which queries are off."""
    q, k = torch.randn(ROWS, 128, generator=generator), torch.zeros(KEYS, 128)
    steps = q.abs().amax(dim=1, keepdim=True) / 127
    error = q / steps - (q / steps).round()
    k[1 : ROWS + 1] = error / error.norm(dim=1, keepdim=True)
    return q, k


def whole_steps(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and queries that codes hold exactly, so that roundings of float32 are all that is off."""
    k = torch.zeros(KEYS, 128)
    for row in range(KEYS):
        channels = torch.randperm(128, generator=generator)[:10]
        k[row, channels] = torch.randint(-127, 128, (10,), generator=generator).float()
        k[row, channels[0]] = 127
    q = torch.randint(-127, 128, (ROWS, 128), generator=generator).float()
    q[:, 0] = 127
    return 1.37 * q, k


def cancelling_mean(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A logit that is small beside the products that make it."""
    q = 1e3 * torch.randn(ROWS, 128, generator=generator)
    q[:, 64:] = 1e-3 * torch.randn(ROWS, 64, generator=generator) - q[:, :64]
    return q, torch.full((KEYS, 128), 1.37)


def underflowing(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys whose squares are 0 in float32, beside queries that make up for it."""
    q, k = aligned_with_queries(generator)
    return 3e24 * q, 1e-24 * k.sign()


@pytest.mark.parametrize(
    "inputs",
    [aligned_with_a_key, aligned_with_queries, whole_steps, cancelling_mean, underflowing],
    ids=lambda made: made.__name__,
)
def test_each_part_of_a_bound_is_needed_and_enough(inputs: Callable[[torch.Generator], tuple[Tensor, Tensor]]) -> None:
    """Without the error of keys, of queries, or roundings, the bound of one of these is too low."""
    q, k1 = inputs(torch.Generator().manual_seed(0))
    # The sample is of zeros, so that codes are of the keys as they are; a mean needs keys to be the mean of.
    if inputs is not cancelling_mean:
        k1[:: KEYS // 64] = 0
    found = call_interpreting(bounds, q, k1, torch.zeros(ROWS), 1.0)
    exact = LOG2_E * k1.double() @ q.double().T
    assert not (found.double() < exact).any()


@pytest.mark.parametrize("log_z", [12345.678, -4e6])
def test_a_logit_that_log_z_nearly_cancels_is_bounded(log_z: float) -> None:
    """Constant keys, whose codes are 0: all is in the offset."""
    q, k1 = cancelling_mean(torch.Generator().manual_seed(1))
    q[:, 0] += log_z / LOG2_E / 1.37
    found = call_interpreting(bounds, q, k1, torch.full((ROWS,), log_z), 1.0)
    assert (found.double() >= LOG2_E * k1.double() @ q.double().T - log_z).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38, 1e36, 1e34, 1e22, 1e17])
def test_what_is_not_finite_or_huge_has_no_finite_bound(value: float) -> None:
    """A huge product overflows in float32 on the way to a small sum, and then counts as the largest score."""
    generator = torch.Generator().manual_seed(4)
    q, k1 = keys_of("gaussian", 64, generator)
    # One that the sample of every fifth key has, and one that it has not.
    k1[[7, 10], 5] = value
    found = call_interpreting(bounds, q, k1, torch.zeros(ROWS), 1.0)
    assert not (found[[7, 10]] < math.inf).any()
    assert (found[8] < math.inf).all()
    q[3, 2] = value
    found = call_interpreting(bounds, q, k1, torch.zeros(ROWS), 1.0)
    assert not (found[:, 3] < math.inf).any()


def test_rows_without_weight_are_bounded_by_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    q, k1 = keys_of("gaussian", 64, generator)
    log_z = torch.zeros(ROWS)
    log_z[4] = math.inf
    found = call_interpreting(bounds, q, k1, log_z, 1.0)
    assert (found[:, 4] == -math.inf).all()
    assert found[:, 5].isfinite().all()


SIZES = SparseSizes(
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    scale=1 / 8,
    kernel_size=8,
    kernel_stride=4,
    block_size=16,
    topk=11,
    window_size=32,
    init_blocks=1,
    dense_len=-1,
)


def chosen_and_counted(
    case: Case, sequences: Tensor, bounds: Mapping[str, int] | None, sm: int = 120
) -> tuple[Outcome, Tensor]:
    """A selection, `bounds` as `selection_on`, and the most survivors of each tile."""
    outcome, buffers = selected(case, sequences, sm, bounds)
    return outcome, buffers["survivor_count"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "sm"), [(torch.bfloat16, 86), (torch.float16, 120)])
def test_a_long_list_is_narrowed_to_the_blocks_that_the_exact_pass_chooses(
    dtype: torch.dtype, sm: int, device: str
) -> None:
    case = Case(tokens=11, past=(4000, 900), sizes=SIZES, dtype=dtype)
    if device == "cuda":
        own = served_architecture(torch.device(device))
        # Tiles of warp groups have no bounds: those take the instructions of SM86.
        sm = own if tiles.BOUNDED_BLOCKS[own] else 86
    sequences = random_sequences(case).to("cpu" if device == "interpreter" else device)
    by_bounds, counts = chosen_and_counted(case, sequences, {}, sm)
    exact, none = chosen_and_counted(case, sequences, {"BOUNDED_BLOCKS": 0}, sm)
    # Products of other shapes are summed up in another order on a GPU, which may tell scores that are nearly equal.
    assert device == "cuda" or torch.equal(by_bounds.chosen, exact.chosen)
    for row in (0, 1):
        assert_selection(by_bounds, row)
    assert (none == -1).all()
    # Nine are chosen of 250 blocks.
    assert ((counts >= 9) & (counts <= 60)).all()


def test_a_tile_with_more_survivors_than_room_takes_the_exact_pass() -> None:
    case = Case(tokens=24, past=(2600,), sizes=replace(SIZES, num_kv_heads=1))
    sequences = random_sequences(case)
    # All keys of one tile's queries alike: every bound is as good as the other.
    sequences[0, 2608:2616, : 8 * 64] = 0
    by_bounds, counts = chosen_and_counted(case, sequences, {"SURVIVOR_SLOTS": 64})
    exact, _ = chosen_and_counted(case, sequences, None)
    assert torch.equal(by_bounds.chosen, exact.chosen)
    assert [count > 64 for count in counts[0, 0].tolist()] == [False, True, False]


def test_bounds_begin_within_a_chunk_and_a_batch() -> None:
    """At 60 candidates, in chunks of 64 tokens; one row is short, one dense; scale < 0, and no initial block."""
    sizes = replace(SIZES, num_heads=10, head_dim=32, scale=-(32**-0.5), init_blocks=0, dense_len=300)
    case = Case(tokens=70, past=(958, 400, 150), context=(1028, 470, 220), sizes=sizes)
    sequences = random_sequences(case)
    by_bounds, counts = chosen_and_counted(case, sequences, {"BOUNDED_BLOCKS": 60, "BOUNDED_TOKENS": 64})
    exact, _ = chosen_and_counted(case, sequences, None)
    assert torch.equal(by_bounds.chosen[:2], exact.chosen[:2])
    assert [[count >= 0 for count in head] for head in counts[0].tolist()] == [[False] * 4 + [True] * 5] * 2
    assert (counts[1] == -1).all()


@pytest.mark.parametrize(("tokens", "is_bounded"), [(64, True), (63, False)])
def test_chunks_of_few_tokens_have_no_bounds(tokens: int, is_bounded: bool) -> None:
    """With one key in a block, and its neighbour's."""
    sizes = replace(SIZES, head_dim=32, kernel_stride=16, kernel_size=17, topk=12, init_blocks=2, scale=1.0)
    case = Case(tokens=tokens, past=(930,), sizes=sizes, dtype=torch.bfloat16)
    outcome, counts = chosen_and_counted(case, random_sequences(case), {"BOUNDED_BLOCKS": 30, "BOUNDED_TOKENS": 64})
    assert ((counts >= 0) == is_bounded).all()
    assert_selection(outcome, 0)


def test_caches_larger_than_there_is_room_for_codes_have_no_bounds() -> None:
    case = Case(tokens=9, past=(900,), sizes=SIZES)
    sequences = random_sequences(case)
    within, beyond = (chosen_and_counted(case, sequences, {"CODED_KEYS": keys})[1] for keys in (256, 128))
    assert (within >= 9).all()
    assert (beyond == -1).all()


def test_equal_scores_go_to_the_lower_block() -> None:
    case = Case(tokens=9, past=(900,), sizes=SIZES)
    sequence = projections(909, SIZES, seed=3)
    keys = slice(SIZES.num_heads * SIZES.head_dim, (SIZES.num_heads + SIZES.num_kv_heads) * SIZES.head_dim)
    sequence[:, keys] = sequence[0, keys]
    outcome, counts = chosen_and_counted(case, sequence[None], {})
    assert (counts > 9).all()
    assert all(blocks[:10] == list(range(10)) for head in blocks_of(outcome) for blocks in head)


def test_neighbours_that_share_the_best_key_tie() -> None:
    sizes = replace(SIZES, num_heads=16, num_kv_heads=1, topk=3)
    case = Case(tokens=64, past=(1400,), sizes=sizes)
    outcome, counts = chosen_and_counted(case, random_sequences(case), {})
    assert assert_selection(outcome, 0) >= 4
    assert (counts >= 1).all()


def test_scores_beyond_the_largest_float_tie() -> None:
    # 8 equal keys fill a k1 window and a quarter of a k2 window: exp(a - m) overflows for two blocks.
    sizes = replace(SIZES, num_heads=16, num_kv_heads=1, topk=3, scale=1.0)
    sequence = torch.zeros(700, 2 * 17 * 64)
    sequence[:, : 16 * 64] = 1.0
    for start, value in ((208, 3.0), (400, 4.0)):
        sequence[start : start + 8, 16 * 64 : 17 * 64] = value
    case = Case(tokens=2, past=(698,), sizes=sizes)
    by_bounds, counts = chosen_and_counted(case, sequence[None], {})
    exact, _ = chosen_and_counted(case, sequence[None], None)
    assert torch.equal(by_bounds.chosen, exact.chosen)
    assert (counts >= 1).all()


def test_outlier_channels_and_keys_are_chosen_alike_beside_a_row_that_chooses_all() -> None:
    case = Case(tokens=16, past=(150, 1200), sizes=replace(SIZES, init_blocks=3))
    sequences = random_sequences(case)
    keys = slice(SIZES.num_heads * SIZES.head_dim, (SIZES.num_heads + SIZES.num_kv_heads) * SIZES.head_dim)
    sequences[:, ::7, keys] *= 5
    sequences[:, :, keys.start : keys.start + 2] *= 20
    by_bounds, counts = chosen_and_counted(case, sequences, {})
    exact, _ = chosen_and_counted(case, sequences, None)
    assert torch.equal(by_bounds.chosen, exact.chosen)
    # Of 150 tokens all blocks are taken, and none is scored.
    assert (counts[0] == -1).all()
    assert (counts[1] >= 7).all()
