"""Weights as torch tensors over mapped files; the one module of this package that needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from .tensor_location import TensorLocation


def map_tensor(location: TensorLocation) -> torch.Tensor:
    """The tensor at `location`, copy-on-write: nothing is read now and nothing written reaches the file."""
    data = np.memmap(location.file, dtype=np.uint8, mode="c", offset=location.offset, shape=(location.length,))
    dtype: torch.dtype = getattr(torch, location.dtype.value)
    if location.offset % location.dtype.bytes:
        data = data.copy()
    return torch.from_numpy(data).view(dtype).view(location.shape)
