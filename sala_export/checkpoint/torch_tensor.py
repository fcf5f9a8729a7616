"""Stored tensors as torch tensors; the one module of this package that needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .tensor_location import TensorLocation


def read_tensor(location: TensorLocation) -> torch.Tensor:
    """Read the tensor at `location` into memory of its own, on the CPU. Raises: as `TensorLocation.raw`."""
    dtype: torch.dtype = getattr(torch, location.dtype.value)
    return torch.from_numpy(location.raw()).view(dtype).view(location.shape)
