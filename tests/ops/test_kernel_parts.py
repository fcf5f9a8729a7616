"""Parts of the InfLLMv2Attention kernels that whole calls reach only by chance, or at sizes that no test can afford."""

from __future__ import annotations

import pytest
import torch
from support.kernel_probes import FAR_TOKENS, among_best, attend_far_into_a_cache
from support.triton_interpreter import call_interpreting

LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("limit", [0, 1, 7, 62])
def test_best_of_the_parts_go_to_the_lower_block_where_scores_are_equal(levels: int, limit: int) -> None:
    """Scores of a few levels, among them 0 and the largest float, on blocks in no order, with places that hold none."""
    generator = torch.Generator().manual_seed(levels + limit)
    values = torch.cat((torch.tensor([0.0, LARGEST, 1e-40]), torch.rand(1000, generator=generator)))[:levels]
    score = values[torch.randint(levels, (128,), generator=generator)]
    block = torch.randperm(1000, generator=generator)[:128].int()
    block[torch.rand(128, generator=generator) < 0.3] = -1
    held = [(-float(s), int(b)) for s, b in zip(score, block, strict=True) if b >= 0]
    best = {b for _, b in sorted(held)[:limit]}
    chosen = call_interpreting(among_best, score, block, limit)
    assert set(block[chosen].tolist()) == best
    assert int(chosen.sum()) == len(best)


@pytest.mark.parametrize("tokens", [9, 1])
def test_caches_of_more_values_than_an_int32_counts_are_addressed_right(tokens: int) -> None:
    y, expected = call_interpreting(attend_far_into_a_cache, tokens, FAR_TOKENS // 64 - 50)
    assert float((y.double() - expected).abs().max()) <= 4e-3 * float(expected.abs().max())
