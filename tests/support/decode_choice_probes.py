"""Kernels around the choice of one token's best blocks, run where Triton interprets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sala_export.ops.infllmv2_attention.decode_choice import best_in_order, likely_best, score_bits

from .triton_interpreter import UNWRITTEN


@triton.jit
def _best_kernel(
    score_ptr: tl.tensor,
    likely_score_ptr: tl.tensor,
    likely_ptr: tl.tensor,
    best_ptr: tl.tensor,
    candidates: tl.tensor,
    limit: tl.tensor,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    index = tl.arange(0, COLUMNS)
    bits = score_bits(tl.load(score_ptr + index), index < candidates)
    if candidates > COLUMNS:
        bits, index = likely_best(score_ptr, likely_score_ptr, likely_ptr, candidates, limit, COLUMNS, SLOTS)
    is_best, place = best_in_order(bits, limit, SLOTS)
    tl.store(best_ptr + place, index, mask=is_best)


def best_blocks(score: Tensor, limit: int, columns: int, slots: int) -> list[int]:
    """Indices of the `limit` best of fp32 scores, in the kernels' order; more of them than `limit`.

    Memory around them, and what is handed on in memory, is poisoned. Raises: ValueError if more was kept in memory than
    may be.
    """
    turns = -(-len(score) // columns)
    padded = torch.full((turns * columns,), float("nan"))
    padded[: len(score)] = score
    places = limit * (turns + 1)
    likely = torch.full((2 * places + columns,), UNWRITTEN, dtype=torch.int32)
    likely_score = torch.full((2 * places + columns,), float("nan"))
    best = torch.full((limit + columns,), UNWRITTEN, dtype=torch.int32)
    _best_kernel[(1,)](padded, likely_score, likely, best, len(score), limit, columns, slots)
    if (likely[places:] != UNWRITTEN).any() or not likely_score[places:].isnan().all():
        raise ValueError(f"more than {places} of {len(score)} scores were kept")
    if (best[limit:] != UNWRITTEN).any():
        raise ValueError(f"more than {limit} were chosen")
    return best[:limit].tolist()
