"""The two optimisation profiles of an engine, with shapes by input of the step. Weights have one shape each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from ..bundle.manifest import Manifest
from ..model.signature import BATCH, CAPACITY, CAPACITY_K1, CAPACITY_K2, MAX_LOGIT_ROWS, ROWS, TOKENS
from .graph import EngineGraph
from .request import EngineRequest

PAGE_BYTES = 2 << 20
"""Page of the memory of every GPU that a recipe names, as the CUDA driver maps it."""


class ProfileName(StrEnum):
    """Profiles in the order of their index in the engine."""

    PREFILL = "prefill"
    """Calls of 1 to `prefill_chunk` tokens of one sequence, with logits of 1 to 256 of them."""
    DECODE = "decode"
    """Calls of one token of each of 1 to `max_batch` sequences, with the logits of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeRange:
    """Smallest, optimal and largest shape of one input."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One optimisation profile: the shapes of every input of the step."""

    name: ProfileName
    inputs: tuple[ShapeRange, ...]


def largest_sizes(graph: EngineGraph, request: EngineRequest, profile: ProfileName) -> dict[str, int]:
    """Largest size of every symbolic dimension in a profile.

    Caches of several sequences stand side by side as one tensor, and the memory of each sequence grows by pages. So
    where a call may take several, every cache ends where a page does. The runtime chooses the same sizes (`sizes_for`
    in runtime/src/session/session_core.cc).
    """
    page_bytes = PAGE_BYTES if request.max_batch > 1 else 1
    if profile is ProfileName.PREFILL:
        steps = {BATCH: 1, TOKENS: request.prefill_chunk, ROWS: min(MAX_LOGIT_ROWS, request.prefill_chunk)}
    else:
        steps = {BATCH: request.max_batch, TOKENS: 1, ROWS: request.max_batch}
    return {**steps, **_cache_sizes(graph, request.max_context, page_bytes)}


def make_profiles(graph: EngineGraph, request: EngineRequest) -> tuple[Profile, ...]:
    """Make the profiles prefill and decode. Both range over the same caches, so one set of buffers serves both.

    TensorRT tunes for the largest sizes, but for one row of logits in a chunk, because most chunks ask for no more. A
    session may allocate caches for less than `max_context`, down to one block of the block-sparse operator.
    """
    sparse = graph.sparse_sizes()
    least_capacity = min(request.max_context, sparse.block_size) if sparse else 1
    profiles = []
    least = {BATCH: 1, TOKENS: 1, ROWS: 1, **_cache_sizes(graph, least_capacity, page_bytes=1)}
    for name in ProfileName:
        most = largest_sizes(graph, request, name)
        usual = most | {ROWS: most[BATCH]}
        ranges = tuple(
            ShapeRange(name=spec.name, min=spec.bound(least), opt=spec.bound(usual), max=spec.bound(most))
            for spec in graph.inputs
        )
        profiles.append(Profile(name=name, inputs=ranges))
    return tuple(profiles)


def stated_profiles(manifest: Manifest) -> tuple[Profile, ...]:
    """The profiles that a bundle's engine was built with."""
    profiles = []
    for name, ranges in manifest.require_engine().profiles.items():
        least, usual, most = (
            {BATCH: 1, **{symbol: getattr(sizes, bound) for symbol, sizes in ranges.items()}}
            for bound in ("min", "opt", "max")
        )
        inputs = tuple(
            ShapeRange(name=spec.name, min=spec.bound(least), opt=spec.bound(usual), max=spec.bound(most))
            for spec in manifest.graph.inputs
        )
        profiles.append(Profile(name=ProfileName(name), inputs=inputs))
    return tuple(profiles)


def _cache_sizes(graph: EngineGraph, capacity: int, page_bytes: int) -> dict[str, int]:
    capacity = _in_pages(graph, CAPACITY, capacity, page_bytes)
    sizes = {CAPACITY: capacity}
    sparse = graph.sparse_sizes()
    if sparse:
        for symbol, rows in (
            (CAPACITY_K1, sparse.k1_capacity(capacity)),
            (CAPACITY_K2, sparse.k2_capacity(capacity)),
        ):
            sizes[symbol] = _in_pages(graph, symbol, rows, page_bytes)
    return sizes


def _in_pages(graph: EngineGraph, symbol: str, rows: int, page_bytes: int) -> int:
    """The least number from `rows` on with which every cache that grows along `symbol` fills whole pages."""
    row_bytes = (spec.size_bytes({BATCH: 1, symbol: 1}) for spec in graph.inputs if symbol in spec.shape)
    multiple = math.lcm(*(page_bytes // math.gcd(page_bytes, size) for size in row_bytes))
    return -(-rows // multiple) * multiple
