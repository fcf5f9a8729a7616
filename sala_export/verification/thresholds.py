"""Limits that each precision must keep to pass. docs/calibration.md has the measurements behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..specs import Precision
from .metrics import LogitErrors, RowErrors


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Limits that a model under test must keep."""

    kl: float
    """Largest mean KL of the logits, in nats."""
    top1: float
    """Least share of tokens with the same most likely successor."""
    cosine: float
    """Least mean cosine of hidden rows in every layer."""
    perplexity_ratio: float
    """Largest ratio of perplexities on text, tested over original."""

    def failures(self, layers: list[RowErrors], logits: LogitErrors, *, text: bool) -> list[str]:
        """Say in one sentence each which limits are not kept.

        Args: `text`: the tokens are text. With random tokens perplexity is a matter of chance, and not judged.
        """
        # NaN is worse than any number.
        worst = min(range(len(layers)), key=lambda i: (not math.isnan(layers[i].cosine), layers[i].cosine))
        found = []
        # Comparisons are written so that NaN fails.
        if not logits.kl <= self.kl:
            found.append(f"mean KL of the logits is {logits.kl:.4f}, at most {self.kl:g} passes")
        if not logits.top1 >= self.top1:
            found.append(f"top-1 agreement is {logits.top1:.1%}, at least {self.top1:.0%} passes")
        if not layers[worst].cosine >= self.cosine:
            found.append(
                f"cosine of the rows after layer {worst} is {layers[worst].cosine:.4f}, at least {self.cosine:g} passes"
            )
        if text and not logits.perplexity_ratio <= self.perplexity_ratio:
            found.append(
                f"perplexity is {logits.perplexity_ratio:.3f} times the original's, at most {self.perplexity_ratio:g} "
                "passes"
            )
        return found


THRESHOLDS: Mapping[Precision, Thresholds] = {
    # What computes the unquantised graph here does so in fp32, so rounding of sums is all that may be left.
    Precision.FP32: Thresholds(kl=1e-5, top1=0.99, cosine=0.9999, perplexity_ratio=1.001),
    Precision.BF16: Thresholds(kl=1e-5, top1=0.99, cosine=0.9999, perplexity_ratio=1.001),
    Precision.FP16: Thresholds(kl=1e-5, top1=0.99, cosine=0.9999, perplexity_ratio=1.001),
    Precision.FP8: Thresholds(kl=0.1, top1=0.65, cosine=0.985, perplexity_ratio=1.03),
    Precision.INT8: Thresholds(kl=0.1, top1=0.65, cosine=0.985, perplexity_ratio=1.03),
    Precision.INT4: Thresholds(kl=0.7, top1=0.3, cosine=0.93, perplexity_ratio=1.1),
    Precision.NVFP4: Thresholds(kl=1.0, top1=0.2, cosine=0.9, perplexity_ratio=1.15),
}
