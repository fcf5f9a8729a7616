"""Runs two models side by side, layer by layer, on the same tokens."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError
from ..progress import ProgressCallback, silent
from ..specs import Precision
from .metrics import LogitComparison, LogitErrors, RowErrors, row_errors
from .subject import LayerRows, Subject
from .thresholds import THRESHOLDS, Thresholds

_LOGIT_ROWS = 256
"""Rows whose logits exist at once."""
_PHASE = "verify"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerResult:
    """Result of one layer of the model under test."""

    errors: RowErrors
    largest_activation: float | None
    input_range: float | None
    saturated: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Result of a verification."""

    original: str
    tested: str
    precision: Precision
    layers: tuple[LayerResult, ...]
    logits: LogitErrors
    thresholds: Thresholds
    failures: tuple[str, ...]
    """Sentences that say which limits were not kept. If there are none, the model passes."""
    activation_limit: float
    """Largest finite number of the type of activations."""
    seconds: float
    peak_host_bytes: int

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        fields = asdict(self)
        fields["precision"] = self.precision.value
        fields["logits"]["perplexity_ratio"] = self.logits.perplexity_ratio
        return {"passed": self.passed, **fields}


def run_verification(
    original: Subject,
    tested: Subject,
    precision: Precision,
    input_ids: Tensor,
    *,
    text: bool,
    on_progress: ProgressCallback = silent,
) -> Verification:
    """Run both models on one context int64 [T] of at least two tokens, with one layer of each in memory.

    Args: `text`: the tokens are text, so that their perplexity says something.
    Raises: RequestError if they are different models.
    """
    if original.config != tested.config:
        raise RequestError("--model is another model than the one to verify: their configurations differ")
    start = time.monotonic()
    count = original.config.num_hidden_layers
    on_progress(_PHASE, 0, count + 1)
    results: list[LayerResult] = []
    rows: tuple[LayerRows, LayerRows] | None = None
    for rows in zip(original.layers(input_ids), tested.layers(input_ids), strict=True):
        results.append(
            LayerResult(
                errors=row_errors(rows[0].rows, rows[1].rows),
                largest_activation=rows[1].largest_activation,
                input_range=rows[1].input_range,
                saturated=rows[1].saturated,
            )
        )
        on_progress(_PHASE, len(results), count + 1)
    assert rows is not None
    comparison = LogitComparison()
    for first in range(0, len(input_ids), _LOGIT_ROWS):
        some = slice(first, first + _LOGIT_ROWS)
        successors = input_ids[first + 1 : first + _LOGIT_ROWS + 1]
        comparison.add(original.logits(rows[0].rows[some]), tested.logits(rows[1].rows[some]), successors)
    on_progress(_PHASE, count + 1, count + 1)
    thresholds, logits = THRESHOLDS[precision], comparison.result()
    return Verification(
        original=original.description,
        tested=tested.description,
        precision=precision,
        layers=tuple(results),
        logits=logits,
        thresholds=thresholds,
        failures=tuple(thresholds.failures([result.errors for result in results], logits, text=text)),
        activation_limit=float(torch.finfo(getattr(torch, precision.dtype.value)).max),
        seconds=time.monotonic() - start,
        peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
