"""The choice of blocks and their unions alone, run where Triton interprets, on scratch that is poisoned."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sala_export.ops.infllmv2_attention import tiles
from sala_export.ops.infllmv2_attention.block_choice import choose_blocks, store_unions

from .triton_interpreter import poisoned

SLOTS, SURVIVOR_SLOTS = (tiles.CONSTANTS[name] for name in ("SLOTS", "SURVIVOR_SLOTS"))


@triton.jit
def _choose_kernel(
    score_ptr: tl.tensor,
    survivors_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    stride: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    limit: tl.tensor,
    rows: tl.tensor,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SURVIVOR_SLOTS: tl.constexpr,
) -> None:
    survivor_stride = tl.minimum(stride, SURVIVOR_SLOTS)
    choose_blocks(
        score_ptr,
        stride,
        survivors_ptr,
        survivor_stride,
        first,
        end,
        limit,
        chosen_ptr,
        rows,
        ROWS,
        SLOTS,
        SURVIVOR_SLOTS,
    )


def chosen_blocks(score: Tensor, first: int, limit: int) -> Tensor:
    """int32 [rows, limit] by the kernels' own function, among the columns of `score` [rows, blocks] from `first` on.

    The rows are padded to a power of two; nothing may be written for those beyond.
    """
    rows, end = score.shape
    padded_rows = triton.next_power_of_2(rows)
    # Columns beyond the last block, and rows beyond the last, hold NaN, which nothing may take for a score.
    padded = poisoned((padded_rows, end + 5), dtype=torch.float32, device=score.device)
    padded[:rows, :end] = score
    padded[rows:, :end] = 0
    padded[:, :first] = float("nan")
    survivors = poisoned((padded_rows, min(end + 5, SURVIVOR_SLOTS)), dtype=torch.int32, device=score.device)
    chosen = poisoned((padded_rows, limit), dtype=torch.int32, device=score.device)
    sizes = (end + 5, first, end, limit, rows, padded_rows, SLOTS, SURVIVOR_SLOTS)
    _choose_kernel[(1,)](padded, survivors, chosen, *sizes)
    assert (chosen[rows:] == poisoned((1,), dtype=torch.int32, device=score.device)).all()
    return chosen[:rows]


@triton.jit
def _unions_kernel(
    chosen_ptr: tl.tensor,
    union_blocks_ptr: tl.tensor,
    union_size_ptr: tl.tensor,
    rows: tl.tensor,
    limit: tl.tensor,
    ROWS: tl.constexpr,
    UNION_T: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    store_unions(chosen_ptr, union_blocks_ptr, union_size_ptr, rows, limit, ROWS, UNION_T, SLOTS)


def unions(chosen: Tensor, union_tokens: int, block_t: int) -> tuple[Tensor, Tensor]:
    """union_blocks [rows, SLOTS] and union_size [rows], by the kernels' own function, of lists [rows, limit]."""
    rows, limit = chosen.shape
    union_blocks = poisoned((rows, SLOTS), dtype=torch.int32, device=chosen.device)
    union_size = poisoned((rows,), dtype=torch.int32, device=chosen.device)
    _unions_kernel[(1,)](chosen, union_blocks, union_size, rows, limit, block_t, union_tokens, SLOTS)
    return union_blocks, union_size
