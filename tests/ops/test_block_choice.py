"""The choice among scores in memory, and the unions of neighbouring tokens' lists, against sorting and sets."""

from __future__ import annotations

import pytest
import torch
from support.choice_probes import chosen_blocks, unions
from support.selection_calls import expected_unions
from support.triton_interpreter import UNWRITTEN, call_interpreting
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def best_blocks(score: Tensor, first: int, limit: int) -> list[list[int]]:
    """The `limit` best of each row from column `first` on, equal ones by the lower index, ascending, then -1."""
    rows = []
    for row in score.tolist():
        held = sorted((-value, block) for block, value in enumerate(row) if block >= first and value >= 0)
        blocks = sorted(block for _, block in held[:limit])
        rows.append(blocks + [-1] * (limit - len(blocks)))
    return rows


def scores_of(kind: str, rows: int, end: int, generator: torch.Generator) -> Tensor:
    """Scores [rows, end] of one order or another; the last columns of each row but the last are no candidates."""
    if kind == "random":
        score = torch.rand(rows, end, generator=generator) ** 8
    elif kind == "levels":
        values = torch.tensor([0.0, 1e-40, 0.25, 0.5, LARGEST])
        score = values[torch.randint(len(values), (rows, end), generator=generator)]
    elif kind == "equal":
        score = torch.full((rows, end), 0.125)
    elif kind == "nothing":
        score = torch.zeros(rows, end)
    elif kind == "close":
        # Differences in the last bits only: the lower bound, which has fewer, lets nearly all survive.
        score = 1 + torch.randint(100, (rows, end), generator=generator) * 2.0**-23
    else:
        score = torch.arange(end).expand(rows, end) / 3.0 if kind == "ascending" else end - torch.arange(end) / 1.0
        score = score.expand(rows, end).clone()
    for row in range(rows):
        score[row, end - rows + 1 + row :] = -1
    return score


ORDERS = ["random", "levels", "equal", "nothing", "close", "ascending", "descending"]
# First block, one beyond the last, and how many are chosen: around the groups and the survivors that there are, fewer
# candidates than places, and many more than survivors.
SIZES = [(1, 255, 62), (0, 256, 64), (3, 257, 7), (1, 30, 62), (0, 600, 1)]
CALLS = [(kind, *sizes) for kind in ORDERS for sizes in SIZES]
CALLS += [("random", 1, 4097, 62), ("levels", 0, 4096, 64), ("ascending", 2, 2300, 62)]


@pytest.mark.parametrize(("kind", "first", "end", "limit"), CALLS)
def test_best_blocks_are_chosen_in_ascending_order(kind: str, first: int, end: int, limit: int) -> None:
    score = scores_of(kind, 5, end, torch.Generator().manual_seed(end + limit))
    chosen = call_interpreting(chosen_blocks, score, first, limit)
    assert chosen.tolist() == best_blocks(score, first, limit)


def test_one_row_is_chosen_for_as_many_are() -> None:
    score = torch.rand(1, 1000, generator=torch.Generator().manual_seed(1))
    assert call_interpreting(chosen_blocks, score, 2, 62).tolist() == best_blocks(score, 2, 62)


def lists(rows: int, limit: int, blocks: int, generator: torch.Generator) -> Tensor:
    """Ascending lists [rows, limit] of random lengths among `blocks`, then -1; every seventh is empty."""
    result = torch.full((rows, limit), -1, dtype=torch.int32)
    for row in range(rows):
        count = 0 if row % 7 == 6 else int(torch.randint(max(limit - 2, 0), limit + 1, (), generator=generator))
        result[row, :count] = torch.randperm(blocks, generator=generator)[:count].sort().values
    return result


@pytest.mark.parametrize("union_tokens", [2, 4])
@pytest.mark.parametrize(
    ("rows", "limit", "blocks"), [(8, 62, 90), (7, 64, 64), (5, 7, 1 << 14), (1, 1, 3), (8, 64, 4000)]
)
def test_unions_are_those_of_sets(union_tokens: int, rows: int, limit: int, blocks: int) -> None:
    chosen = lists(rows, limit, blocks, torch.Generator().manual_seed(rows + limit + blocks))
    union_blocks, union_size = call_interpreting(unions, chosen, union_tokens, 8)
    for first, expected in expected_unions(chosen, union_tokens).items():
        assert union_size[first] == len(expected)
        assert union_blocks[first:].flatten()[: len(expected)].tolist() == expected
        assert (union_size[first + 1 : first + union_tokens] == UNWRITTEN).all()
