"""The C++ sampler against a second implementation of its definition (runtime/include/sala/sampler.h) in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sala_export.runtime import _native

DEFAULTS: dict[str, Any] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "seed": 0,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "logit_bias": {},
}


def numpy_sample(
    logits: NDArray[np.float32],
    context: NDArray[np.int32],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    seed: int,
    min_p: float,
    frequency_penalty: float,
    presence_penalty: float,
    logit_bias: dict[int, float],
    prompt_length: int,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    logits = logits.copy()
    for token, bias in logit_bias.items():
        logits[token] = np.float32(np.float64(logits[token]) + bias)
    seen = np.unique(context)
    penalty = np.float32(repetition_penalty)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    drawn, counts = np.unique(context[prompt_length:], return_counts=True)
    taken = frequency_penalty * counts.astype(np.float64) + presence_penalty
    logits[drawn] = (logits[drawn].astype(np.float64) - taken).astype(np.float32)
    order = np.lexsort((np.arange(len(logits)), -logits))
    if allowed is not None:
        order = order[allowed[order]]
    if temperature == 0:
        return int(order[0])
    largest = logits[order[0]].astype(np.float64)
    if top_k:
        order = order[:top_k]
    weights = np.exp((logits[order].astype(np.float64) - largest) / temperature)
    if top_p < 1:
        reached = np.cumsum(weights) >= top_p * weights.sum()
        count = int(reached.argmax()) + 1 if reached.any() else len(order)
        order, weights = order[:count], weights[:count]
    probable = weights >= min_p
    order, weights = order[probable], weights[probable]
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
        options: dict[str, Any] = {
            "temperature": float(random.choice([0.0, 0.3, 1.0, 2.5])),
            "top_k": int(random.choice([0, 1, 3, 50, vocab_size + 5])),
            "top_p": float(random.choice([1.0, 0.95, 0.5, 1e-6])),
            "repetition_penalty": float(random.choice([1.0, 1.3, 0.7])),
            "seed": int(random.integers(0, 2**63)) * 2 + trial % 2,
            "min_p": float(random.choice([0.0, 0.02, 0.3, np.exp(-0.1), 1.0])),
            "frequency_penalty": float(random.choice([0.0, 0.1, 2.0, -2.0])),
            "presence_penalty": float(random.choice([0.0, 0.7, 2.0, -2.0])),
            "logit_bias": biases(random, vocab_size),
        }
        prompt_length = int(random.integers(0, len(context) + 1))
        allowed = some_tokens(random, vocab_size)
        token = native_sample(logits, context, prompt_length, options, allowed)
        expected = numpy_sample(logits, context, prompt_length=prompt_length, allowed=allowed, **options)
        assert token == expected, options
        drawn.add(token)
    assert len(drawn) >= min(vocab_size, 40)


def biases(random: np.random.Generator, vocab_size: int) -> dict[int, float]:
    """None for most draws, else for a few tokens or for all, with both ends of the range."""
    count = int(random.choice([0, 0, 1, 5, vocab_size]))
    values = random.choice([-100.0, -0.1, 1 / 3, 2.0, 100.0], count)
    return {int(token): float(bias) for token, bias in zip(random.integers(0, vocab_size, count), values, strict=True)}


def some_tokens(random: np.random.Generator, vocab_size: int) -> NDArray[np.bool_] | None:
    """None for half of the draws, else one token, a few, or most."""
    share = random.choice([-1.0, -1.0, -1.0, 0.0, 0.05, 0.9])
    if share < 0:
        return None
    allowed = random.random(vocab_size) < share
    allowed[random.integers(vocab_size)] = True
    return allowed


def words_of(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """A bit for each token, and none behind the last one that is allowed."""
    packed = np.packbits(np.pad(allowed, (0, -len(allowed) % 32)), bitorder="little").view("<u4").astype(np.uint32)
    return np.trim_zeros(packed, "b")


def native_sample(
    logits: NDArray[np.float32],
    context: NDArray[np.int32],
    prompt_length: int,
    options: dict[str, Any],
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    sampling = _native.SamplingOptions(**options)
    words = None if allowed is None else words_of(allowed)
    return _native.sample(logits, context, sampling, prompt_length=prompt_length, allowed=words)


AWKWARD: dict[str, dict[str, Any]] = {
    "all taken down alike": {"logit_bias": dict.fromkeys(range(6), -100.0), "temperature": 1.0},
    "all taken down but one": {"logit_bias": dict.fromkeys(range(1, 6), -100.0), "temperature": 0.5},
    "one pushed beyond all": {"logit_bias": {4: 100.0}, "temperature": 2.0, "top_p": 0.9},
    "ties at the border of min_p": {"min_p": 1.0, "temperature": 1.0},
    "min_p within top_k": {"min_p": 0.2, "top_k": 2, "temperature": 1.0},
    "min_p at the weight of a token": {"min_p": float(np.exp(np.float64(-1.0))), "temperature": 1.0},
    "min_p behind a small top_p": {"min_p": 0.9, "top_p": 1e-9, "temperature": 3.0},
    "min_p beyond every exponent": {"min_p": 5e-324, "temperature": 1e-3},
    "penalties at their upper ends": {"frequency_penalty": 2.0, "presence_penalty": 2.0},
    "penalties at their lower ends": {"frequency_penalty": -2.0, "presence_penalty": -2.0, "temperature": 0.7},
    "penalties that cancel out": {"frequency_penalty": 1.0, "presence_penalty": -1.0, "temperature": 0.7},
    "penalties of both kinds": {"repetition_penalty": 0.01, "frequency_penalty": 0.3, "logit_bias": {2: -3.5}},
}


@pytest.mark.parametrize("options", AWKWARD.values(), ids=AWKWARD)
def test_awkward_options_draw_as_numpy_does(options: dict[str, Any]) -> None:
    logits = np.array([2.0, 2.0, 1.0, 1.0, -np.inf, 3e30], np.float32)
    for case in (logits[:4], logits[:5], logits, np.zeros(6, np.float32), np.full(6, -1e-30, np.float32)):
        vocab_size = len(case)
        whole = {**DEFAULTS, **options}
        whole["logit_bias"] = {token: bias for token, bias in whole["logit_bias"].items() if token < vocab_size}
        for seed in range(40):
            whole["seed"] = seed
            context = np.array([0, 2, 0, 0, 1, 3, 2], np.int32)
            for prompt_length in (0, 3, 7):
                expected = numpy_sample(case, context, prompt_length=prompt_length, **whole)
                assert native_sample(case, context, prompt_length, whole) == expected


@pytest.mark.parametrize("vocab_size", [1, 2, 19, 21, 5000])
def test_log_probabilities_equal_numpy(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    for trial in range(40):
        logits = np.round(random.normal(0, 4, vocab_size), 1).astype(np.float32)
        logits[random.random(vocab_size) < 0.1 * (trial % 3)] = -np.inf
        logits[random.integers(vocab_size)] = np.float32(random.choice([-3e38, 0.0, 30.0, 3e38]))
        exact = logits.astype(np.float64)
        expected = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
        token = int(random.integers(vocab_size))
        for top in (0, 1, 5, 20):
            logprob, likeliest = _native.token_logprobs(logits, token, top)
            order = np.lexsort((np.arange(vocab_size), -logits))[:top]
            np.testing.assert_allclose(logprob, expected[token], rtol=1e-13, atol=1e-13)
            assert [each for each, _ in likeliest] == order.tolist()
            np.testing.assert_allclose([each for _, each in likeliest], expected[order], rtol=1e-13, atol=1e-13)
