"""The inputs of a step besides its caches, as numpy arrays, for programs that run a graph or an engine themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .signature import CONTEXT_LENGTH, INPUT_IDS, LOGIT_ROWS, PAST_LENGTH, ROPE_COS_SIN

Arrays = dict[str, NDArray[np.generic]]


def token_inputs(input_ids: NDArray[np.int64], past: int, rows: int, inv_freq: Sequence[float]) -> Arrays:
    """Make them for tokens [B, T] that follow `past` tokens of each sequence, by their names in the graph.

    Args: `rows`: how many of the last tokens of each sequence get logits; `inv_freq` [head_dim / 2], of the manifest.
    """
    batch, tokens = input_ids.shape
    positions = np.arange(past, past + tokens, dtype=np.float32)
    # The product is rounded to fp32, and the functions of it are accurate (model/rope.py).
    angle = (positions[:, None] * np.asarray(inv_freq, np.float32)).astype(np.float64)
    rotation = np.concatenate((np.cos(angle), np.sin(angle)), axis=-1).astype(np.float32)
    last = np.arange(batch)[:, None] * tokens + np.arange(tokens - rows, tokens)
    return {
        INPUT_IDS: input_ids,
        PAST_LENGTH: np.full(batch, past, np.int32),
        CONTEXT_LENGTH: np.full(batch, past + tokens, np.int32),
        ROPE_COS_SIN: np.ascontiguousarray(np.broadcast_to(rotation, (batch, *rotation.shape))),
        LOGIT_ROWS: last.reshape(-1).astype(np.int32),
    }
