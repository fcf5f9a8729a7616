"""The account of bytes and operations of LightningAttention, against counts made another way."""

from __future__ import annotations

import math

import pytest

from sala_export.ops.common.cost import total
from sala_export.ops.common.expr import evaluate
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.ops.lightning_attention.cost import costs, floor
from sala_export.ops.lightning_attention.schema import PUBLISHED as SALA
from sala_export.ops.lightning_attention.triton_kernel import KERNELS

CHANNEL_BYTES = 32 * 128 * 2
STATE_BYTES = 32 * 128 * 128 * 4
ONE_PASS_BYTES = 32_768
"""Per token and layer: q, k and v read, the unnormed output written, in 16 bits."""
NORM_PASS_BYTES = 3 * CHANNEL_BYTES
"""Per token and layer: unnormed output and z read, y written."""


def launched(tokens: int, batch: int = 1) -> list[str]:
    """Kernels of a call that have a block to run, from the launches themselves."""
    names = {**KERNELS.constants, "B": batch, "T": tokens, "num_heads": 32, "head_dim": 128}
    found = []
    for launch in KERNELS.decode if tokens == 1 else KERNELS.prefill:
        sizes = {**launch.tiles[90].constexprs, **names}
        if math.prod(evaluate(extent, sizes) for extent in launch.grid):
            found.append(launch.name)
    return found


@pytest.mark.parametrize(("tokens", "batch"), [(1, 1), (1, 3), (2, 1), (512, 1), (513, 1), (8192, 1), (8192, 4)])
def test_account_names_the_kernels_that_are_launched(tokens: int, batch: int) -> None:
    assert [cost.kernel for cost in costs(SALA, batch=batch, tokens=tokens)] == launched(tokens, batch)


def test_prefill_of_8192_tokens_moves_at_most_1_2_of_the_floor() -> None:
    moved = total("prefill", costs(SALA, batch=1, tokens=8192)).bytes_moved
    assert moved <= 1.2 * 8192 * (ONE_PASS_BYTES + NORM_PASS_BYTES)


def reaches(length: int) -> list[int]:
    """Tokens per head whose weight at the end of a segment is at least 2^-32, weights counted one by one."""
    ages = range(length)
    return [sum(math.exp(-(2 ** (-0.25 * (head + 1))) * age) >= 2.0**-32 for age in ages) for head in range(32)]


STATES = 32 + 3 * (32 + sum(reach > 1024 for reach in reaches(2048)))
"""At 8192 tokens: before the chunk, then of 3 segments, which two programs sum for the heads of long reach."""


def test_prefill_kernel_reads_and_writes_everything_once() -> None:
    """Besides q, k, v and outputs: rotations, 8 sums of squares per head, two norm weights, states."""
    prefill = next(c for c in costs(SALA, batch=1, tokens=8192) if c.kernel == "lightning_prefill_kernel")
    states = STATES * STATE_BYTES // 32
    assert prefill.bytes_read == 8192 * (3 * CHANNEL_BYTES + 128 * 4) + 2 * 128 * 2 + states
    assert prefill.bytes_written == 8192 * (CHANNEL_BYTES + 8 * 32 * 4) + STATE_BYTES


def test_carry_reads_no_token_whose_weight_has_vanished() -> None:
    """What is kept sums to all but 2^-32 of the whole, in whole units of 64 tokens."""
    carry = costs(SALA, batch=1, tokens=8192)[0]
    needed = sum(min(2048, -(-reach // 64) * 64) for reach in reaches(2048))
    keys_and_values = 3 * needed * 2 * 128 * 2
    rotations = 3 * 2048 * 128 * 4
    unit_either_way = 32 * 3 * 64 * 2 * 128 * 2
    assert abs(carry.bytes_read - (keys_and_values + rotations + 128 * 2 + STATE_BYTES)) <= unit_either_way
    assert carry.bytes_written == STATES * STATE_BYTES // 32


@pytest.mark.parametrize("sm", AOT_ARCHITECTURES)
@pytest.mark.parametrize("batch_heads", [1, 5, 24, 32, 40, 300])
def test_no_segment_is_empty_and_the_workspace_holds_what_all_hand_on(sm: int, batch_heads: int) -> None:
    unit = KERNELS.constants["SEGMENT_UNIT"]
    carry = next(w for w in KERNELS.workspaces if w.name == "carry")
    launch = next(launch for launch in KERNELS.prefill if launch.name == "lightning_prefill_kernel")
    for tokens in (2, 512, 513, 577, *range(1000, 9000, 97), 100_000):
        names = {**KERNELS.compile_time(launch, sm, {"head_dim": 128}), "B": 1, "T": tokens, "num_heads": batch_heads}
        segments = evaluate(launch.grid[0], names)
        length = math.ceil(tokens / segments / unit) * unit
        assert (segments - 1) * length < tokens <= segments * length, (tokens, segments)
        assert segments * batch_heads <= max(names["WANTED_PROGRAMS"], batch_heads)
        assert evaluate(carry.shape[0], names) >= batch_heads * (1 + names["PARTS"] * (segments - 1))


def test_launches_that_share_segments_count_them_alike_and_tiles_divide_them() -> None:
    for sm in AOT_ARCHITECTURES:
        carry, prefill = (launch.tiles[sm].constexprs for launch in KERNELS.prefill[:2])
        assert carry["WANTED_PROGRAMS"] == prefill["WANTED_PROGRAMS"] <= KERNELS.constants["MOST_PROGRAMS"]
        assert all(KERNELS.constants["SEGMENT_UNIT"] % tile["BLOCK_T"] == 0 for tile in (carry, prefill))


@pytest.mark.parametrize(("tokens", "batch"), [(512, 1), (100, 2)])
def test_operations_are_those_of_the_launched_products(tokens: int, batch: int) -> None:
    """One segment: every program makes ceil(tokens / 64) turns of the loop."""
    launch = next(launch for launch in KERNELS.prefill if launch.name == "lightning_prefill_kernel")
    sizes = KERNELS.compile_time(launch, 90, {"head_dim": 128})
    turn = sum(2 * math.prod(evaluate(x, sizes) for x in (p.m, p.n, p.k)) for p in launch.main_loop)
    cost = next(c for c in costs(SALA, batch=batch, tokens=tokens) if c.kernel == launch.name)
    assert cost.operations == batch * 32 * -(-tokens // 64) * turn


def test_decode_moves_little_more_than_the_state_twice() -> None:
    moved = total("decode", costs(SALA, batch=1, tokens=1)).bytes_moved
    least = floor(SALA, batch=1, tokens=1).bytes_moved
    assert 2 * STATE_BYTES < least < moved <= 1.01 * least


@pytest.mark.parametrize("tokens", [1, 2, 300, 2048, 8192, 100_000])
@pytest.mark.parametrize("batch", [1, 3])
def test_account_is_never_below_the_floor(tokens: int, batch: int) -> None:
    account = total("lightning_attention", costs(SALA, batch=batch, tokens=tokens))
    least = floor(SALA, batch=batch, tokens=tokens)
    assert account.bytes_read >= least.bytes_read
    assert account.bytes_written >= least.bytes_written
    assert tokens == 1 or account.operations >= least.operations
