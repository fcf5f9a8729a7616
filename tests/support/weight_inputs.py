"""Weight inputs of an engine from a checkpoint, by the words of FORMAT.md alone and without code of the toolkit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from sala_export.bundle.manifest import WeightInput, WeightPart

from .quantized_reference import stored_tensors

_CODES = {"float8_e4m3fn": 1, "int8": 1, "float4_e2m1fn": 2}
"""Types that take a tensor's bytes as they are, and how many of their numbers a byte holds."""
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def assemble(checkpoint: Path, weights: Sequence[WeightInput]) -> dict[str, np.ndarray]:
    """Every weight input by name, as arrays of the `ml_dtypes` package where numpy has no such type."""
    stored = stored_tensors(checkpoint)
    return {weight.spec.name: _filled(weight, stored) for weight in weights}


def _filled(weight: WeightInput, stored: Mapping[str, Tensor]) -> np.ndarray:
    spec = weight.spec
    if weight.layout is not None:
        return _word_columns(weight, stored)
    if spec.dtype in _CODES:
        raw = np.concatenate([_bytes(stored[part.tensor]) for part in weight.parts])
        assert len(raw) * _CODES[spec.dtype] == math.prod(spec.shape)
        return _array(raw, spec.dtype).reshape(spec.shape)
    parts = [_numbers(part, stored).to(_FLOATS[spec.dtype]) for part in weight.parts]
    if spec.shape == (1,):
        assert len({part.item() for part in parts}) == 1, f"parts of {spec.name} do not agree"
        parts = parts[:1]
    return _array(_bytes(torch.cat(parts)), spec.dtype).reshape(spec.shape)


def _word_columns(weight: WeightInput, stored: Mapping[str, Tensor]) -> np.ndarray:
    """Words of four bytes of a row, each place of all rows together."""
    assert weight.layout == "word_columns"
    rows = [row for part in weight.parts for row in stored[part.tensor].tolist()]
    columns, count = weight.spec.shape
    assert len(rows) == count
    words = [[int.from_bytes(row[4 * c : 4 * c + 4], "little", signed=True) for row in rows] for c in range(columns)]
    return np.array(words, np.int32)


def _numbers(part: WeightPart, stored: Mapping[str, Tensor]) -> Tensor:
    """A plain part or one of scales, flat."""
    tensor = stored[part.tensor].flatten()
    if part.rows is None:
        return tensor
    rows = tensor.to(torch.float32).expand(part.rows) if tensor.numel() == 1 else tensor.to(torch.float32)
    assert rows.shape == (part.rows,)
    return rows * stored[part.factor].item() if part.factor else rows


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy().flatten()


def _array(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float4_e2m1fn":
        # One to a byte, as numpy holds them: the first of two is in the low bits.
        return np.stack((raw & 15, raw >> 4), axis=-1).flatten().view(ml_dtypes.float4_e2m1fn)
    return raw.view(getattr(ml_dtypes, dtype, None) or dtype)
