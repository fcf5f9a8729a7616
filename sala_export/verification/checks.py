"""The figures that decide whether a model passes, each with its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .metrics import LogitErrors, OwnErrors, RowErrors
from .thresholds import Thresholds


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerResult:
    """Result of one layer of the model under test."""

    own: OwnErrors
    errors: RowErrors
    """Errors of the stream after the layer, those of the layers before it included."""
    largest_activation: float | None
    input_range: float | None
    saturated: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A figure that is judged."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    """True if larger figures are better."""
    layer: int | None = None
    """The layer that is furthest from its limit, if the figure is of layers."""

    @property
    def passed(self) -> bool:
        # Comparisons are written so that NaN fails.
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def passes(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:.4g}"

    def __str__(self) -> str:
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.what}{where}: {self.value:.4g}, {self.passes} passes"


def checks_of(layers: Sequence[LayerResult], logits: LogitErrors, depth: int, limits: Thresholds) -> tuple[Check, ...]:
    """Judge a model of `depth` layers. Without `layers`, by its logits alone."""
    return (*(_layer_checks(layers, limits) if layers else ()), *_logit_checks(logits, depth, limits))


def _layer_checks(layers: Sequence[LayerResult], limits: Thresholds) -> tuple[Check, ...]:
    own = [layer.own.relative for layer in layers]
    channel = [layer.own.channel for layer in layers]
    losses = [(1 - layer.errors.cosine) / (1 - limits.cosine_after(i)) for i, layer in enumerate(layers)]
    worst = _worst(losses)
    return (
        Check(what="own error of a layer", value=own[_worst(own)], limit=limits.own, layer=_worst(own)),
        Check(
            what="own error of a channel", value=channel[_worst(channel)], limit=limits.channel, layer=_worst(channel)
        ),
        Check(
            what="cosine after a layer",
            value=layers[worst].errors.cosine,
            limit=limits.cosine_after(worst),
            at_least=True,
            layer=worst,
        ),
    )


def _logit_checks(logits: LogitErrors, depth: int, limits: Thresholds) -> tuple[Check, ...]:
    checks = [
        Check(what="mean KL of the logits, nats", value=logits.kl, limit=limits.kl_of(logits, depth)),
        Check(what="same most likely token", value=logits.top1, limit=limits.top1, at_least=True),
    ]
    # NaN predicts nothing, and is judged.
    if logits.predicts or not math.isfinite(logits.perplexity_ratio):
        checks.append(
            Check(what="perplexity, times the original", value=logits.perplexity_ratio, limit=limits.perplexity_ratio)
        )
    return tuple(checks)


def _worst(errors: Sequence[float]) -> int:
    """NaN is worse than any number."""
    return max(range(len(errors)), key=lambda i: (math.isnan(errors[i]), errors[i]))
