"""Measures how far two models are apart on the same tokens: hidden rows of each layer, and logits.

T tokens, H hidden size, V vocabulary. Sums are taken in fp64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RowErrors:
    """Errors of the residual stream after a layer, of the model under test against the original."""

    cosine: float
    """Mean over tokens of the cosine between the two rows."""
    least_cosine: float
    max_error: float
    """Largest difference of two elements."""
    relative_error: float
    """Norm of the difference over the norm of the original, all rows together."""


def row_errors(original: Tensor, tested: Tensor) -> RowErrors:
    """Compare rows fp32 [T, H]."""
    a, b = original.to(torch.float64), tested.to(torch.float64)
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    cosine = (a * b).sum(-1) / norms.clamp(min=torch.finfo(torch.float64).tiny)
    difference = b - a
    return RowErrors(
        cosine=float(cosine.mean()),
        least_cosine=float(cosine.min()),
        max_error=float(difference.abs().max()),
        relative_error=float(difference.norm() / a.norm().clamp(min=torch.finfo(torch.float64).tiny)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnErrors:
    """Errors of what one layer adds to the residual stream, given the rows that enter the original's layer.

    Errors of the layers before it are no part of it, so it has the same size in a model of any depth."""

    relative: float
    """Norm of the difference over the norm of what the original's layer adds, all rows together."""
    channel: float
    """The same of the worst channel of the stream. A channel that adds less than the median one counts as that."""


def own_errors(before: Tensor, original: Tensor, tested: Tensor) -> OwnErrors:
    """Compare rows fp32 [T, H] after a layer of both models, which got the same rows `before`."""
    added = original.to(torch.float64) - before
    difference = tested.to(torch.float64) - original
    tiny = torch.finfo(torch.float64).tiny
    channels = added.norm(dim=0)
    return OwnErrors(
        relative=float(difference.norm() / added.norm().clamp(min=tiny)),
        channel=float((difference.norm(dim=0) / channels.clamp(min=float(channels.median())).clamp(min=tiny)).max()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitErrors:
    """Errors of the next-token distributions of the model under test against the original."""

    tokens: int
    kl: float
    """Mean over tokens of KL(original || tested), in nats."""
    max_kl: float
    top1: float
    """Share of tokens with the same most likely successor."""
    original_perplexity: float
    """Perplexity of the tokens under the original, each predicted from those before it."""
    tested_perplexity: float
    logit_std: float
    """Standard deviation of the original's logits, by which you judge the numbers above."""

    vocab_size: int

    @property
    def perplexity_ratio(self) -> float:
        return self.tested_perplexity / self.original_perplexity

    @property
    def predicts(self) -> bool:
        """True if the original predicts these tokens better than a guess. Else their perplexity is chance: the tokens
        are random, or the weights are."""
        return self.original_perplexity < self.vocab_size


class LogitComparison:
    """Compares logits of consecutive rows, so that those of all tokens never exist at once."""

    def __init__(self) -> None:
        self._tokens = self._agreeing = self._predicted = 0
        self._kl = self._max_kl = self._square = self._sum = 0.0
        self._elements = self._vocab_size = 0
        self._losses = [0.0, 0.0]

    def add(self, original: Tensor, tested: Tensor, successors: Tensor) -> None:
        """Add logits fp32 [T, V] of some rows.

        Args: `successors` int64 [T or T - 1] are the tokens after the rows. The last row of a text has none."""
        log_p, log_q = original.log_softmax(-1), tested.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)
        self._tokens += len(kl)
        self._kl += float(kl.sum())
        self._max_kl = max(self._max_kl, float(kl.max()))
        self._agreeing += int((original.argmax(-1) == tested.argmax(-1)).sum())
        self._predicted += len(successors)
        for index, log_probability in enumerate((log_p, log_q)):
            chosen = log_probability[: len(successors)].gather(1, successors[:, None])
            self._losses[index] -= float(chosen.sum(dtype=torch.float64))
        self._square += float(original.square().sum(dtype=torch.float64))
        self._sum += float(original.sum(dtype=torch.float64))
        self._elements += original.numel()
        self._vocab_size = original.shape[1]

    def result(self) -> LogitErrors:
        """Return the errors of all rows so far, at least two."""
        mean = self._sum / self._elements
        return LogitErrors(
            tokens=self._tokens,
            kl=max(self._kl / self._tokens, 0.0),  # rounding alone takes it below
            max_kl=self._max_kl,
            top1=self._agreeing / self._tokens,
            original_perplexity=_perplexity(self._losses[0] / self._predicted),
            tested_perplexity=_perplexity(self._losses[1] / self._predicted),
            vocab_size=self._vocab_size,
            logit_std=math.sqrt(max(0.0, self._square / self._elements - mean**2)),
        )


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
