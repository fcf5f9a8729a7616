"""The choice of one token's best blocks, against a sort: sizes and scores that whole calls reach only by chance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.decode_choice_probes import best_blocks
from support.triton_interpreter import call_interpreting
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def random(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(count))


def neighbouring_floats(count: int) -> Tensor:
    """Three of them: five times the highest, and in most columns of a tile nothing but the lowest."""
    index = torch.arange(count)
    return 1 + torch.finfo(torch.float32).eps * ((index % 64 < 20).int() + (index < 5).int())


def few_levels(count: int) -> Tensor:
    """0, the largest float, a number without a normal exponent, and others, many times each."""
    generator = torch.Generator().manual_seed(count)
    levels = torch.cat((torch.tensor([0.0, LARGEST, 1e-40]), torch.rand(5, generator=generator)))
    return levels[torch.randint(len(levels), (count,), generator=generator)]


SCORES: dict[str, Callable[[int], Tensor]] = {
    "random": random,
    "neighbouring floats": neighbouring_floats,
    "few levels": few_levels,
    "equal": lambda count: torch.full((count,), 0.25),
    "zero": torch.zeros,
    "ascending": lambda count: torch.arange(count) / 7.0,
    "descending": lambda count: torch.arange(count).flip(0) / 7.0,
    "neighbours that share a key": lambda count: random(count)[torch.arange(count) // 2],
    # All that is high lies in 30 columns of a tile of 512: each turn keeps much.
    "high in few columns": lambda count: random(count) + (torch.arange(count) % 512 < 30),
}


@pytest.mark.parametrize("scores", SCORES)
def test_best_blocks_are_those_of_a_sort_in_ascending_order(scores: str) -> None:
    for columns, slots, counts in ((512, 64, (65, 511, 513, 20000)), (64, 8, (9, 65, 4000))):
        for count in counts:
            score = SCORES[scores](count)
            order = sorted(range(count), key=lambda i: (-float(score[i]), i))
            for limit in (1, slots - 2, slots):
                found = call_interpreting(best_blocks, score, limit, columns, slots)
                assert found == sorted(order[:limit]), (columns, count, limit)
