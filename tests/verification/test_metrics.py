"""Metrics against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sala_export.verification.metrics import LogitComparison, own_errors, row_errors


def test_row_errors_are_those_of_the_formulas() -> None:
    original = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    tested = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    found = row_errors(original, tested)
    assert found.cosine == pytest.approx(0.5)
    assert found.least_cosine == pytest.approx(0.0)
    assert found.max_error == 1.0
    assert found.relative_error == pytest.approx(math.sqrt(2 / 26))


def test_own_errors_are_of_what_is_added_and_of_its_worst_channel() -> None:
    before = torch.full((2, 3), 100.0)
    added = torch.tensor([[3.0, 0.0, 0.1], [4.0, 5.0, 0.0]])
    wrong = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = own_errors(before, before + added, before + added + wrong)
    assert found.relative == pytest.approx(1 / math.sqrt(50.01), rel=1e-4)
    assert found.channel == pytest.approx(1 / 5, rel=1e-4)
    # The third channel adds next to nothing: it counts as the median one, which adds 5.
    quiet = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    assert own_errors(before, before + added, before + added + quiet).channel == pytest.approx(0.5 / 5, rel=1e-4)


@pytest.mark.parametrize("block", [1, 7, 40])
def test_logits_in_blocks_give_what_all_at_once_give(block: int) -> None:
    random = np.random.default_rng(0)
    p, q = random.normal(size=(2, 40, 50)) * 3
    q = p + 0.3 * q
    ids = random.integers(0, 50, 40)
    comparison = LogitComparison()
    for first in range(0, 40, block):
        some = slice(first, first + block)
        comparison.add(
            torch.from_numpy(p[some]).float(),
            torch.from_numpy(q[some]).float(),
            torch.from_numpy(ids[first + 1 : first + block + 1]),
        )
    found = comparison.result()

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(p), log_softmax(q)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    assert found.tokens == 40
    assert found.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-4)
    assert found.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert found.logit_std == pytest.approx(p.std(), rel=1e-4)
    for perplexity, log in ((found.original_perplexity, log_p), (found.tested_perplexity, log_q)):
        assert perplexity == pytest.approx(np.exp(-log[np.arange(39), ids[1:]].mean()), rel=1e-4)
    assert found.vocab_size == 50
    assert found.predicts is (found.original_perplexity < 50)
    assert found.perplexity_ratio == found.tested_perplexity / found.original_perplexity
