"""The C++ sampler against a second implementation of its definition (runtime/include/sala/sampler.h) in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sala_export.runtime import _native


def numpy_sample(
    logits: NDArray[np.float32],
    context: NDArray[np.int32],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    seed: int,
) -> int:
    logits = logits.copy()
    seen = np.unique(context)
    penalty = np.float32(repetition_penalty)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if temperature == 0:
        return int(logits.argmax())
    order = np.lexsort((np.arange(len(logits)), -logits))
    if top_k:
        order = order[:top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    if top_p < 1:
        reached = np.cumsum(weights) >= top_p * weights.sum()
        count = int(reached.argmax()) + 1 if reached.any() else len(order)
        order, weights = order[:count], weights[:count]
    # numpy counts up before it draws.
    counter = (len(context) - 1) % 2**256
    word = int(np.random.Philox(key=seed, counter=counter).random_raw())
    u = (word >> 11) / 2**53
    above = np.cumsum(weights) > u * weights.sum()
    return int(order[int(above.argmax()) if above.any() else -1])


@pytest.mark.parametrize("vocab_size", [1, 2, 97, 5000])
def test_draws_equal_numpy(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    drawn = set()
    for trial in range(300):
        # Coarse values, so that ties occur.
        logits = np.round(random.normal(0, 3, vocab_size), 1).astype(np.float32)
        context = random.integers(0, vocab_size, random.integers(0, 40)).astype(np.int32)
        options = {
            "temperature": float(random.choice([0.0, 0.3, 1.0, 2.5])),
            "top_k": int(random.choice([0, 1, 3, 50, vocab_size + 5])),
            "top_p": float(random.choice([1.0, 0.95, 0.5, 1e-6])),
            "repetition_penalty": float(random.choice([1.0, 1.3, 0.7])),
            "seed": int(random.integers(0, 2**63)) * 2 + trial % 2,
        }
        token = _native.sample(logits, context, **options)  # type: ignore[arg-type]
        assert token == numpy_sample(logits, context, **options), options  # type: ignore[arg-type]
        drawn.add(token)
    assert len(drawn) >= min(vocab_size, 40)
