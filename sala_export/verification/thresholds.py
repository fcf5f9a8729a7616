"""Limits that each precision must keep to pass. docs/calibration.md has the measurements behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..specs import Precision
from .metrics import LogitErrors


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Limits that a model under test must keep. Those of one layer hold for a model of any depth."""

    own: float
    """Largest relative error of what a layer adds to the stream, given the original's rows."""
    channel: float
    """Largest relative error of one channel of that."""
    cosine_loss: float
    """Largest loss of cosine, 1 - cosine, of the rows after a layer, for each layer up to it: errors add up."""
    least_cosine: float
    """Least cosine after a layer, however deep it is."""
    kl: float
    """Largest mean KL of the logits, in nats, for each layer and unit of the variance of the original's logits."""
    top1: float
    """Least share of tokens with the same most likely successor."""
    perplexity_ratio: float
    """Largest ratio of perplexities, tested over original, if the original predicts the tokens."""

    def cosine_after(self, layer: int) -> float:
        """The least cosine of the rows after a layer, counted from 0."""
        return max(1 - self.cosine_loss * (layer + 1), self.least_cosine)

    def kl_of(self, logits: LogitErrors, layers: int) -> float:
        """The largest mean KL for a model of so many layers: a relative error e of the last rows costs about
        `(std e)^2 / 2`, and the squares of the layers' errors add up."""
        return self.kl * layers * max(logits.logit_std, 1.0) ** 2


_EXACT = Thresholds(
    own=0.001, channel=0.01, cosine_loss=1e-4, least_cosine=0.9999, kl=1e-6, top1=0.99, perplexity_ratio=1.001
)
_EIGHT_BITS = Thresholds(
    own=0.16, channel=0.4, cosine_loss=0.004, least_cosine=0.95, kl=0.005, top1=0.6, perplexity_ratio=1.03
)
_SIXTEEN_BITS = Thresholds(
    own=0.02, channel=0.1, cosine_loss=2e-4, least_cosine=0.99, kl=5e-4, top1=0.85, perplexity_ratio=1.01
)

THRESHOLDS: Mapping[Precision, Thresholds] = {
    # Rounding of sums is all that may be left.
    Precision.FP32: _EXACT,
    Precision.BF16: _SIXTEEN_BITS,
    Precision.FP16: _SIXTEEN_BITS,
    Precision.FP8: _EIGHT_BITS,
    # Measured like fp8: both round to three bits of mantissa.
    Precision.MXFP8: _EIGHT_BITS,
    Precision.INT8: _EIGHT_BITS,
    Precision.INT4: Thresholds(
        own=0.32, channel=0.7, cosine_loss=0.025, least_cosine=0.8, kl=0.03, top1=0.25, perplexity_ratio=1.1
    ),
    Precision.NVFP4: Thresholds(
        own=0.42, channel=0.8, cosine_loss=0.035, least_cosine=0.7, kl=0.045, top1=0.15, perplexity_ratio=1.15
    ),
}
"""Limits by the precision of quantised weights, or else by the type that the model under test computes in."""
