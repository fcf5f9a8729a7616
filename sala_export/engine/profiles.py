"""The two optimisation profiles of an engine, with shapes by input of the step. Weights have one shape each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..model.signature import BATCH, CAPACITY, CAPACITY_K1, CAPACITY_K2, TOKENS
from .graph import EngineGraph
from .request import EngineRequest


class ProfileName(StrEnum):
    """Profiles in the order of their index in the engine."""

    PREFILL = "prefill"
    """Calls of 1 to `prefill_chunk` tokens."""
    DECODE = "decode"
    """Calls of one token."""


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


def largest_sizes(graph: EngineGraph, request: EngineRequest, tokens: int) -> dict[str, int]:
    """Largest size of every symbolic dimension, for calls of `tokens` tokens."""
    return _sizes(graph, request.max_batch, tokens, request.max_context)


def make_profiles(graph: EngineGraph, request: EngineRequest) -> tuple[Profile, ...]:
    """Make the profiles prefill and decode. Both range over the same caches, so one set of buffers serves both.

    A session may allocate caches for less than `max_context`, down to one block of the block-sparse operator.
    """
    sparse = graph.sparse_sizes()
    least_capacity = min(request.max_context, sparse.block_size) if sparse else 1
    profiles = []
    for name, most_tokens in ((ProfileName.PREFILL, request.prefill_chunk), (ProfileName.DECODE, 1)):
        least = _sizes(graph, 1, 1, least_capacity)
        most = largest_sizes(graph, request, most_tokens)
        ranges = tuple(
            ShapeRange(name=spec.name, min=spec.bound(least), opt=spec.bound(most), max=spec.bound(most))
            for spec in graph.inputs
        )
        profiles.append(Profile(name=name, inputs=ranges))
    return tuple(profiles)


def _sizes(graph: EngineGraph, batch: int, tokens: int, capacity: int) -> dict[str, int]:
    sizes = {BATCH: batch, TOKENS: tokens, CAPACITY: capacity}
    sparse = graph.sparse_sizes()
    if sparse:
        sizes |= {CAPACITY_K1: sparse.k1_capacity(capacity), CAPACITY_K2: sparse.k2_capacity(capacity)}
    return sizes
