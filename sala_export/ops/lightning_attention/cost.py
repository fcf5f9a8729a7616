"""What the LightningAttention kernels move and compute, and the least that any do.

Bytes are those of device memory, each distinct byte once per launch: what the programs of one launch read in common
(rotations, norm weights, states of several segments) is in the L2 cache after the first. Tiles and segments are those
of an H100, where most was measured. GPUs of 160 multiprocessors or more cut a prefill into one more segment.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.cost import KernelCost
from ..common.expr import evaluate
from . import tiles

_FLOAT_BYTES = 4
_TILE = tiles.PREFILL[90].constexprs
_TILE_TOKENS = _TILE["BLOCK_T"]
_UNIT_TOKENS = tiles.CONSTANTS["SEGMENT_UNIT"]


def costs(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> tuple[KernelCost, ...]:
    """Every launch of one call, in order: those of decode for one token, else those of prefill.

    Args: all attributes of the operator by name; `past_length` changes nothing, the state has one size.
    """
    heads, dim = int(attributes["num_heads"]), int(attributes["head_dim"])
    if tokens == 1:
        return (_decode(heads, dim, batch, activation_bytes),)
    names = {**tiles.CONSTANTS, **_TILE, "B": batch, "T": tokens, "num_heads": heads}
    segments = evaluate(tiles.SEGMENTS, names)
    length = _rounded_up(-(-tokens // segments), _UNIT_TOKENS)
    output = _output(heads, dim, batch * tokens, activation_bytes)
    # Of the state before the chunk a copy is read where segments carry.
    states = batch * (heads + (segments - 1) * sum(_parts(_reach(head, heads, length)) for head in range(heads)))
    prefill = _prefill(heads, dim, batch, tokens, activation_bytes, length=length, states=states)
    if segments == 1:
        return prefill, output
    return _carry(heads, dim, batch, activation_bytes, length=length, segments=segments, states=states), prefill, output


def floor(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> KernelCost:
    """The least of any implementation: q, k, v, z read, y and the state read and written once.

    Of more than one token the outputs also pass through memory in the activation type before their norm, which spans
    all heads. The work is that of the recurrence token by token.
    """
    heads, dim = int(attributes["num_heads"]), int(attributes["head_dim"])
    row = batch * tokens * heads * dim * activation_bytes
    state = batch * heads * dim * dim * _FLOAT_BYTES
    through_memory = row if tokens > 1 else 0
    return KernelCost(
        kernel="lightning_attention",
        bytes_read=4 * row + through_memory + state,
        bytes_written=row + through_memory + state,
        operations=4 * batch * tokens * heads * dim * dim,
    )


def _carry(
    heads: int, dim: int, batch: int, activation_bytes: int, *, length: int, segments: int, states: int
) -> KernelCost:
    handed_on = segments - 1
    reach = [_reach(head, heads, length) for head in range(heads)]
    state = dim * dim * _FLOAT_BYTES
    keys_and_values = 2 * batch * handed_on * sum(reach) * dim * activation_bytes
    rotations = batch * handed_on * max(reach) * dim * _FLOAT_BYTES
    return KernelCost(
        kernel="lightning_carry_kernel",
        bytes_read=keys_and_values + rotations + dim * activation_bytes + batch * heads * state,
        bytes_written=states * state,
        operations=2 * batch * handed_on * sum(reach) * dim * dim,
    )


def _reach(head: int, heads: int, length: int) -> int:
    """Tokens that a segment of `length` reads for what it hands on."""
    tokens = int(tiles.REACH * 2 ** (8 * (head + 1) / heads))
    return min(length, (tokens // _UNIT_TOKENS + 1) * _UNIT_TOKENS)


def _parts(reach: int) -> int:
    """Programs that share `reach` tokens, and states that they write."""
    longest = max(-(-reach // tiles.CONSTANTS["PARTS"]), tiles.CONSTANTS["LEAST_PART"])
    return -(-reach // _rounded_up(longest, _UNIT_TOKENS))


def _rounded_up(tokens: int, unit: int) -> int:
    return -(-tokens // unit) * unit


def _prefill(
    heads: int, dim: int, batch: int, tokens: int, activation_bytes: int, *, length: int, states: int
) -> KernelCost:
    row = batch * tokens * heads * dim * activation_bytes
    state = dim * dim * _FLOAT_BYTES
    squares = batch * tokens * heads * tiles.CONSTANTS["PREFILL_VALUE_TILES"] * _FLOAT_BYTES
    computed = sum(_rounded_up(min(length, tokens - start), _TILE_TOKENS) for start in range(0, tokens, length))
    return KernelCost(
        kernel="lightning_prefill_kernel",
        bytes_read=3 * row + batch * tokens * dim * _FLOAT_BYTES + 2 * dim * activation_bytes + states * state,
        bytes_written=row + squares + batch * heads * state,
        operations=4 * batch * heads * computed * dim * (dim + _TILE_TOKENS),
    )


def _decode(heads: int, dim: int, batch: int, activation_bytes: int) -> KernelCost:
    row = batch * heads * dim * activation_bytes
    state = batch * heads * dim * dim * _FLOAT_BYTES
    # What the last program of a row reads again is in the L2 cache.
    outputs = batch * heads * (dim + tiles.CONSTANTS["DECODE_VALUE_TILES"]) * _FLOAT_BYTES
    norms = (2 * dim + heads * dim) * activation_bytes
    return KernelCost(
        kernel="lightning_decode_kernel",
        bytes_read=4 * row + batch * dim * _FLOAT_BYTES + norms + state,
        bytes_written=row + outputs + state,
        operations=0,
    )


def _output(heads: int, dim: int, rows: int, activation_bytes: int) -> KernelCost:
    row = rows * heads * dim * activation_bytes
    squares = rows * heads * tiles.CONSTANTS["PREFILL_VALUE_TILES"] * _FLOAT_BYTES
    return KernelCost(
        kernel="lightning_output_kernel",
        bytes_read=2 * row + squares + heads * dim * activation_bytes,
        bytes_written=row,
        operations=0,
    )
