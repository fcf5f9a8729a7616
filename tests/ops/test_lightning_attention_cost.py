"""The account of bytes and operations of LightningAttention, against counts made another way."""

from __future__ import annotations

import math

import pytest

from sala_export.ops.common.cost import total
from sala_export.ops.common.expr import evaluate
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
        sizes = {**launch.tiles[120].constexprs, **names}
        if math.prod(evaluate(extent, sizes) for extent in launch.grid):
            found.append(launch.name)
    return found


@pytest.mark.parametrize(("tokens", "batch"), [(1, 1), (1, 3), (2, 1), (512, 1), (513, 1), (8192, 1), (8192, 4)])
def test_account_names_the_kernels_that_are_launched(tokens: int, batch: int) -> None:
    assert [cost.kernel for cost in costs(SALA, batch=batch, tokens=tokens)] == launched(tokens, batch)


def test_prefill_of_8192_tokens_moves_at_most_1_15_of_the_floor() -> None:
    moved = total("prefill", costs(SALA, batch=1, tokens=8192)).bytes_moved
    assert moved <= 1.15 * 8192 * (ONE_PASS_BYTES + NORM_PASS_BYTES)


def test_prefill_kernel_reads_and_writes_everything_once() -> None:
    """4 segments start from 4 states; the rotations, sums of squares and two norm weights are the rest."""
    prefill = next(c for c in costs(SALA, batch=1, tokens=8192) if c.kernel == "lightning_prefill_kernel")
    assert prefill.bytes_read == 8192 * (3 * CHANNEL_BYTES + 128 * 4) + 2 * 128 * 2 + 4 * STATE_BYTES
    assert prefill.bytes_written == 8192 * (CHANNEL_BYTES + 32 * 4) + STATE_BYTES


def test_carry_reads_no_token_whose_weight_has_vanished() -> None:
    """Weights counted one by one: those kept sum to all but 2^-32 of the whole, in whole tiles of 32."""
    carry = costs(SALA, batch=1, tokens=8192)[0]
    needed = 0
    for head in range(32):
        weights = [math.exp(-(2 ** (-0.25 * (head + 1))) * age) for age in range(2048)]
        reach = sum(weight >= 2.0**-32 for weight in weights)
        needed += min(2048, -(-reach // 32) * 32)
    keys_and_values = 3 * needed * 2 * 128 * 2
    rotations = 3 * 2048 * 128 * 4
    tile_either_way = 32 * 3 * 32 * 2 * 128 * 2
    assert abs(carry.bytes_read - (keys_and_values + rotations + 128 * 2 + STATE_BYTES)) <= tile_either_way
    assert carry.bytes_written == 4 * STATE_BYTES


@pytest.mark.parametrize(("tokens", "batch"), [(512, 1), (100, 2)])
def test_operations_are_those_of_the_launched_products(tokens: int, batch: int) -> None:
    """One segment: every program makes ceil(tokens / 32) turns of the loop."""
    launch = next(launch for launch in KERNELS.prefill if launch.name == "lightning_prefill_kernel")
    sizes = KERNELS.compile_time(launch, 120, {"head_dim": 128})
    turn = sum(2 * math.prod(evaluate(x, sizes) for x in (p.m, p.n, p.k)) for p in launch.main_loop)
    cost = next(c for c in costs(SALA, batch=batch, tokens=tokens) if c.kernel == launch.name)
    assert cost.operations == batch * 32 * -(-tokens // 32) * turn


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
