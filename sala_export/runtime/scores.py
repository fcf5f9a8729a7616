"""Logits of more tokens than the last, and how probable the model found the tokens of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError
from .options import shown, whole_numbers
from .prompt_ids import ArrayLike

WantedLogits = Literal["last", "all"] | Sequence[int] | NDArray[np.integer] | ArrayLike
"""Tokens of a prompt whose logits are wanted: the last, all, or those of the given indices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How probable the model found each token of a text, given all tokens before it."""

    token_ids: NDArray[np.int32]
    """The tokens of the text, int32 [tokens]."""
    logprobs: NDArray[np.float64]
    """Natural logarithms of their probabilities, float64 [tokens]. NaN for the first token of a context."""
    top_ids: NDArray[np.int32]
    """The likeliest tokens at each place, int32 [tokens, top], equal ones by rising id. -1 where there are none."""
    top_logprobs: NDArray[np.float64]
    """Log-probabilities of `top_ids`, float64 [tokens, top]. NaN where there are none."""

    @property
    def total(self) -> float:
        """The sum of the log-probabilities that there are."""
        return float(np.nansum(self.logprobs))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability. NaN if no token has one."""
        count = int(np.count_nonzero(~np.isnan(self.logprobs)))
        return math.nan if count == 0 else float(np.exp(-self.total / count))


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedRows:
    """Tokens of a prompt whose logits are wanted, as the runtime takes them, and the order they are given back in."""

    tokens: NDArray[np.int64]
    """Indices of tokens, int64 [rows], rising, each once."""
    order: NDArray[np.intp] | None
    """The row of each index that was asked for. None if they were asked for as they stand in `tokens`."""

    @classmethod
    def of(cls, wanted: WantedLogits, tokens: int) -> WantedRows:
        """The rows of `logits`, an argument of `Session.prefill`, for a prompt of so many tokens.

        Raises: SessionError for another word, and for an index that is outside the prompt.
        """
        if isinstance(wanted, str):
            if wanted == "all":
                return cls(tokens=np.arange(tokens), order=None)
            raise SessionError(f"logits is {shown(wanted)}, expected last, all or a list of indices")
        indices = np.array(whole_numbers("logits", wanted, -tokens, tokens - 1), np.int64)
        indices[indices < 0] += tokens
        rising, order = np.unique(indices, return_inverse=True)
        return cls(tokens=rising, order=None if np.array_equal(rising, indices) else order)

    def new_rows(self, vocab_size: int) -> NDArray[np.float32]:
        """An array for the logits of `tokens`, fp32 [rows, vocab_size]. Raises: SessionError without memory for it."""
        try:
            return np.empty((len(self.tokens), vocab_size), np.float32)
        except MemoryError:
            raise SessionError(
                f"logits of {len(self.tokens)} tokens take {len(self.tokens) * vocab_size * 4} bytes, "
                "which this machine has not: ask for fewer, or for their log-probabilities with score"
            ) from None

    def as_asked(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows of `tokens` in the order in which they were asked for."""
        return rows if self.order is None else rows[self.order]
