"""Cutting a model into runs of consecutive layers, built one after the other so that each fits this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..errors import RequestError
from ..specs import format_bytes

_PEAK_PER_WEIGHT_BYTE = 3.1
"""Measured with TensorRT for RTX 1.7.1.116: 9.82 GiB for 3.19 GiB of bf16 weights in four layers of 9B sizes, of which
TensorRT holds two copies and the third is the mapped weight files."""

_UNMAPPED_PER_WEIGHT_BYTE = 2.1
"""The same without the mapped files, which the kernel drops under pressure: 2.08 measured."""

_FIXED_BYTES = 512 << 20
"""Python, TensorRT's libraries and a small graph: 0.25 GiB measured, doubled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRange:
    """Consecutive layers that one engine computes."""

    first_layer: int
    num_layers: int
    weights_bytes: int

    @property
    def last_layer(self) -> int:
        return self.first_layer + self.num_layers - 1


def host_bytes_needed(weights_bytes: int) -> int:
    """Upper estimate of the resident peak of the build of one shard, mapped weight files included, in bytes."""
    return int(weights_bytes * _PEAK_PER_WEIGHT_BYTE) + _FIXED_BYTES


def least_host_bytes(weights_bytes: int) -> int:
    """The part of `host_bytes_needed` that the kernel cannot drop: with less memory than this the build is killed."""
    return int(weights_bytes * _UNMAPPED_PER_WEIGHT_BYTE) + _FIXED_BYTES


def choose_shards(layer_weights_bytes: Sequence[int], host_bytes: int) -> tuple[ShardRange, ...]:
    """The fewest shards whose builds each stay within `host_bytes` of resident memory, as equal as layers allow.

    Args: `layer_weights_bytes` by layer, see `EngineGraph`; `host_bytes`, the budget: see `host.host_budget`.
    Raises: RequestError with the numbers if even one layer does not fit.
    """
    largest = max(range(len(layer_weights_bytes)), key=layer_weights_bytes.__getitem__)
    needed = host_bytes_needed(layer_weights_bytes[largest])
    if needed > host_bytes:
        raise RequestError(
            f"building layer {largest} alone, {format_bytes(layer_weights_bytes[largest])} of weights, takes about "
            f"{format_bytes(needed)} of memory, {format_bytes(host_bytes)} may be used: free some memory, raise "
            "--host-memory, or build on a machine with more"
        )
    return next(
        shards
        for shards in (equal_shards(layer_weights_bytes, count) for count in range(1, len(layer_weights_bytes) + 1))
        if host_bytes_needed(max(shard.weights_bytes for shard in shards)) <= host_bytes
    )


def equal_shards(layer_weights_bytes: Sequence[int], count: int) -> tuple[ShardRange, ...]:
    """`count` shards whose largest has as few bytes of weights as possible.

    Raises: RequestError if there are fewer layers than that.
    """
    layers = len(layer_weights_bytes)
    if not 1 <= count <= layers:
        raise RequestError(f"--shards {count}: expected 1 to {layers}, the number of layers")
    until = [0, *accumulate(layer_weights_bytes)]
    # best[end]: (largest shard, sum of squares, starts of the shards) of layers 0..end in the number of shards so far.
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for _ in range(count):
        best = {
            end: min(
                (max(largest, until[end] - until[start]), squares + (until[end] - until[start]) ** 2, (*starts, start))
                for start, (largest, squares, starts) in best.items()
                if start < end
            )
            for end in range(min(best) + 1, layers + 1)
        }
    starts = best[layers][2]
    return tuple(
        ShardRange(first_layer=start, num_layers=end - start, weights_bytes=until[end] - until[start])
        for start, end in zip(starts, (*starts[1:], layers), strict=True)
    )
