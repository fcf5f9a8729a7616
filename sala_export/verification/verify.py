"""Compares two models on the same tokens: side by side and layer by layer, or a whole runtime by its logits."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RequestError
from ..progress import ProgressCallback, silent
from ..specs import Precision
from .checks import Check, LayerResult, checks_of
from .metrics import LogitComparison, LogitErrors, own_errors, row_errors
from .subject import CheckpointSubject, Subject, run_layers
from .thresholds import THRESHOLDS
from .tokens import VerificationTokens

if TYPE_CHECKING:
    from ..runtime.model import Model

_LOGIT_ROWS = 256
"""Rows whose logits exist at once."""
_PHASE = "verify"

LayerWatcher = Callable[[int, Tensor, Tensor], None]
"""Sees a layer's number, and the rows fp32 [T, H] after it of the original and of the model under test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Result of a verification."""

    original: str
    """What computed the original, for people."""
    tested: str
    precision: Precision
    limits_of: Precision
    """The precision whose limits it must keep: that of quantised weights, or else what the model computes in."""
    tokens: str
    """Where the tokens come from."""
    tokens_sha256: str
    layers: tuple[LayerResult, ...]
    """Empty if the model ran whole, on a runtime."""
    logits: LogitErrors
    checks: tuple[Check, ...]
    """Everything that is judged."""
    activation_limit: float
    """Largest finite number of the type of activations."""
    seconds: float
    peak_host_bytes: int

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        fields = asdict(self)
        fields |= {"precision": self.precision.value, "limits_of": self.limits_of.value}
        fields["logits"] |= {"perplexity_ratio": self.logits.perplexity_ratio, "predicts": self.logits.predicts}
        fields["checks"] = [asdict(check) | {"passed": check.passed} for check in self.checks]
        fields["failures"] = [str(check) for check in self.checks if not check.passed]
        return {"passed": self.passed, **fields}


def run_verification(
    original: CheckpointSubject,
    tested: Subject,
    precision: Precision,
    tokens: VerificationTokens,
    *,
    on_layer: LayerWatcher | None = None,
    on_progress: ProgressCallback = silent,
) -> Verification:
    """Run both models on one context of at least two tokens, with one layer of each in memory.

    Each layer under test runs on its own rows, and on those of the original. `on_layer` sees the rows after each layer.

    Raises: RequestError if they are different models.
    """
    if original.config != tested.config:
        raise RequestError("--model is another model than the one to verify: their configurations differ")
    start = time.monotonic()
    count = original.config.num_hidden_layers
    on_progress(_PHASE, 0, count + 1)
    results: list[LayerResult] = []
    rows = tested_rows = original.embed(tokens.ids)
    for layer in range(count):
        result, rows, tested_rows = _compare_layer(original, tested, layer, tokens.ids, rows, tested_rows)
        results.append(result)
        if on_layer is not None:
            on_layer(layer, rows, tested_rows)
        on_progress(_PHASE, len(results), count + 1)
    comparison = LogitComparison()
    for first in range(0, len(tokens.ids), _LOGIT_ROWS):
        some = slice(first, first + _LOGIT_ROWS)
        successors = tokens.ids[first + 1 : first + _LOGIT_ROWS + 1]
        comparison.add(original.logits(rows[some]), tested.logits(tested_rows[some]), successors)
    on_progress(_PHASE, count + 1, count + 1)
    computes_in = precision if precision.is_quantized else tested.computes_in
    return _verification(original, tested.description, (precision, computes_in), tokens, results, comparison, start)


def run_session_verification(
    original: CheckpointSubject,
    model: Model,
    precision: Precision,
    tokens: VerificationTokens,
    *,
    description: str,
    on_progress: ProgressCallback = silent,
) -> Verification:
    """Run a loaded model on one context of at least two tokens, and the original layer by layer.

    The first half of the tokens is one prompt and every later token a step of its own, so that both ways of running
    are compared. Only logits are seen.
    """
    start = time.monotonic()
    on_progress(_PHASE, 0, len(tokens.ids))
    rows = tokens.ids.new_empty(0)
    for found in run_layers(original, original.embed(tokens.ids), tokens.ids):
        rows = found.rows
    first = len(tokens.ids) // 2 - 1
    comparison = LogitComparison()
    for begin, tested in _blocks(_session_logits(model, tokens.ids, first), first):
        end = begin + len(tested)
        comparison.add(original.logits(rows[begin:end]), tested, tokens.ids[begin + 1 : end + 1])
        on_progress(_PHASE, end, len(tokens.ids))
    computes_in = precision if precision.is_quantized else Precision(model.precision)
    return _verification(original, description, (precision, computes_in), tokens, [], comparison, start)


def _compare_layer(
    original: CheckpointSubject, tested: Subject, layer: int, input_ids: Tensor, rows: Tensor, tested_rows: Tensor
) -> tuple[LayerResult, Tensor, Tensor]:
    """The result of a layer, and the rows after it of both models."""
    after = original.layer(layer, input_ids)(rows).rows
    function = tested.layer(layer, input_ids)
    found = function(tested_rows)
    # Both begin with the same rows.
    alone = found if layer == 0 else function(rows)
    result = LayerResult(
        own=own_errors(rows, after, alone.rows),
        errors=row_errors(after, found.rows),
        largest_activation=found.largest_activation,
        input_range=found.input_range,
        saturated=found.saturated,
    )
    return result, after, found.rows


def _session_logits(model: Model, input_ids: Tensor, first: int) -> Iterable[Tensor]:
    """Logits fp32 [V] of the tokens from `first` on."""
    ids, whole = input_ids.tolist(), len(input_ids)
    session = model.session(max_context=whole)
    yield torch.from_numpy(session.prefill(ids[: first + 1], context_length=whole))
    for token in ids[first + 1 :]:
        yield torch.from_numpy(session.prefill([token], context_length=whole))


def _blocks(logits: Iterable[Tensor], first: int) -> Iterable[tuple[int, Tensor]]:
    """Rows that exist at once [some, V], and the index of the first."""
    rows: list[Tensor] = []
    for row in logits:
        rows.append(row)
        if len(rows) == _LOGIT_ROWS:
            yield first, torch.stack(rows)
            first, rows = first + len(rows), []
    if rows:
        yield first, torch.stack(rows)


def _verification(
    original: CheckpointSubject,
    tested: str,
    precisions: tuple[Precision, Precision],
    tokens: VerificationTokens,
    layers: Sequence[LayerResult],
    comparison: LogitComparison,
    start: float,
) -> Verification:
    """Args: `precisions`: `precision` and `limits_of` of the result."""
    precision, computes_in = precisions
    logits = comparison.result()
    return Verification(
        original=original.description,
        tested=tested,
        precision=precision,
        limits_of=computes_in,
        tokens=str(tokens),
        tokens_sha256=tokens.sha256,
        layers=tuple(layers),
        logits=logits,
        checks=checks_of(layers, logits, original.config.num_hidden_layers, THRESHOLDS[computes_in]),
        activation_limit=float(torch.finfo(getattr(torch, precision.dtype.value)).max),
        seconds=time.monotonic() - start,
        peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
