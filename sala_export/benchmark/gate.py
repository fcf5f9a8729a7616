"""The gate of a benchmark: it measures only a runtime that computes the model correctly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import RunError
from ..model.sala import SalaForCausalLM
from ..model_source import ModelSource
from ..runtime.model import Model
from ..specs import Precision
from ..torch_runtime.load import LoadableModel, TorchModel
from ..torch_runtime.quantized import quantized_weights_of
from ..torch_runtime.weights import load_packed

_CALLS = (31, 12, 1, 1, 1)
"""Tokens of each call: chunks of two lengths, and decode steps, the last of which replays what was captured."""
BOUNDS = {Precision.FP32: 1e-4, Precision.BF16: 32 * 2.0**-9, Precision.FP16: 32 * 2.0**-11}
"""Largest errors relative to the largest logit. 16 bits: 32 half-units in the last place, for ten roundings a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Largest error of a runtime's logits, relative to the largest logit."""

    runtime: str
    precision: Precision
    error: float
    bound: float

    @property
    def problem(self) -> str | None:
        """A sentence that says how they disagree. None if they agree. An error that is NaN is within no bound."""
        if self.error <= self.bound:
            return None
        return (
            f"the {self.runtime} runtime disagrees with the reference model by {self.error:.2g} of the largest logit, "
            f"bound {self.bound:.2g} in {self.precision}"
        )


def require_agreement(model: Model, source: LoadableModel, seed: int = 0) -> Agreement:
    """Compare as `compare` does. Raises: RunError if they disagree, because then there is nothing to measure."""
    found = compare(model, source, seed)
    if found.problem:
        raise RunError(f"{found.problem}: nothing was measured; run the tests of this GPU (pytest -m gpu)")
    return found


def compare(model: Model, source: LoadableModel, seed: int = 0) -> Agreement:
    """Compare a short prompt, chunk by chunk and token by token, with the reference model in the same precision.

    The reference of the torch runtime has the same weights in the same memory; for other runtimes it is loaded on the
    CPU beside them, in the precision of the runtime.
    """
    precision = Precision(model.precision)
    reference = _reference(model, source, precision)
    ids = np.random.default_rng(seed).integers(0, model.vocab_size, sum(_CALLS), dtype=np.int32)
    with torch.inference_mode():
        device = reference.lm_head.weight.device
        expected = reference(torch.from_numpy(ids)[None].to(device, torch.int64))[0].cpu().numpy()
    session = model.session(max_context=len(ids), chunk_tokens=max(_CALLS))
    errors, done = [], 0
    for count in _CALLS:
        logits = session.prefill(ids[done : done + count], context_length=len(ids))
        done += count
        errors.append(float(np.abs(logits - expected[done - 1]).max()))
    error = float(np.max(errors)) / float(np.abs(expected).max())
    return Agreement(runtime=model.runtime, precision=precision, error=error, bound=BOUNDS[precision])


def _reference(model: Model, source: LoadableModel, precision: Precision) -> SalaForCausalLM:
    if isinstance(model, TorchModel):
        return model.reference.model
    quantized = quantized_weights_of(source) if isinstance(source, ModelSource) else {}
    return load_packed(source.weights(), precision, torch.device("cpu"), quantized).model
