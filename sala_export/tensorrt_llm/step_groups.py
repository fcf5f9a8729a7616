"""The operator calls that serve one batch of TensorRT-LLM.

A batch holds chunks of prompts, each of any number of tokens, and then requests that generate, with one token each.
Every chunk is a call of its own. Requests that generate share calls, as many as their contexts leave room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .page_layout import NewWindows, PageLayout

MAX_GATHERED_TOKENS = 1 << 20
"""Most tokens, requests times the longest context, whose keys and values one call of several requests copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestStep:
    """What one request brings to a step."""

    tokens: int
    cached_tokens: int
    """Tokens before this step."""
    prompt_tokens: int
    """Tokens of the whole prompt, also of chunks that are still to come. 0 if it is not known."""
    slots: Sequence[int]
    """Slots of its pages, in order. They hold the tokens of this step too."""

    @property
    def end(self) -> int:
        return self.cached_tokens + self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class StepGroup:
    """Requests that one call of an operator serves: n of them with T tokens each."""

    rows: slice
    """Rows of the batch, n T of them."""
    past_length: Tensor
    """int32 [n]"""
    context_length: Tensor
    """int32 [n]"""
    begins: bool
    """True for the first chunk of a prompt, whose state is zero whatever its slot holds."""
    state_slots: Tensor
    """int64 [n]"""
    slots: Tensor
    """int64 [n, pages], 0 after a request's last page."""
    positions: Tensor
    """int64 [n, T]"""
    windows: tuple[NewWindows, NewWindows]
    """New compressed keys: k1, k2."""

    @property
    def shape(self) -> tuple[int, int]:
        """n and T."""
        return len(self.positions), self.positions.shape[1]


def step_groups(
    requests: Sequence[RequestStep], contexts: int, state_slots: Tensor, layout: PageLayout
) -> list[StepGroup]:
    """Divide a batch, whose first `contexts` requests are chunks of prompts.

    Args: `state_slots`, integers [requests] on the device of the model.
    Raises: UnsupportedError if a request that generates brings more than one token.
    """
    groups, row = [], 0
    for first, last in _cuts(requests, contexts):
        group = _group(requests[first:last], first < contexts, row, state_slots[first:last], layout)
        groups.append(group)
        row = group.rows.stop
    return groups


def _cuts(requests: Sequence[RequestStep], contexts: int) -> Iterator[tuple[int, int]]:
    """The first request of each group, and the first one after it."""
    for index in range(contexts):
        yield index, index + 1
    if any(request.tokens != 1 for request in requests[contexts:]):
        raise UnsupportedError("a request that generates brings several tokens: speculative decoding is not served")
    first, longest = contexts, 0
    for index in range(contexts, len(requests)):
        longest = max(longest, requests[index].end)
        if index > first and longest * (index + 1 - first) > MAX_GATHERED_TOKENS:
            yield first, index
            first, longest = index, requests[index].end
    if first < len(requests):
        yield first, len(requests)


def _group(
    requests: Sequence[RequestStep], is_context: bool, row: int, state_slots: Tensor, layout: PageLayout
) -> StepGroup:
    device, tokens = state_slots.device, requests[0].tokens
    pages = max(-(-request.end // layout.page_tokens) for request in requests)
    slots = torch.zeros(len(requests), pages, dtype=torch.int64)
    for index, request in enumerate(requests):
        own = -(-request.end // layout.page_tokens)
        slots[index, :own] = torch.tensor(request.slots[:own], dtype=torch.int64)
    past = torch.tensor([request.cached_tokens for request in requests], dtype=torch.int32)
    # A chunk computes as the whole prompt does, which is sparse or dense by its own length.
    context = torch.tensor([max(request.end, request.prompt_tokens) for request in requests], dtype=torch.int32)
    slots = slots.to(device)
    lengths = [(request.cached_tokens, request.end) for request in requests]
    k1, k2 = (NewWindows.of(kind, lengths, slots, layout.page_tokens) for kind in (layout.k1, layout.k2))
    return StepGroup(
        rows=slice(row, row + len(requests) * tokens),
        past_length=past.to(device),
        context_length=context.to(device),
        begins=is_context and requests[0].cached_tokens == 0,
        state_slots=state_slots.to(torch.int64),
        slots=slots,
        positions=(past[:, None].to(torch.int64) + torch.arange(tokens)).to(device),
        windows=(k1, k2),
    )
