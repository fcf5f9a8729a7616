"""Stored tensors as torch tensors; the one module of this package that needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .tensor_location import TensorLocation


def read_tensor(location: TensorLocation) -> torch.Tensor:
    """Read the tensor at `location` into memory of its own, on the CPU. Raises: as `TensorLocation.raw`."""
    return as_tensor(location, location.raw())


def as_tensor(location: TensorLocation, block: NDArray[np.uint8]) -> torch.Tensor:
    """The bytes of a tensor, as `TensorLocation.read` gives them, as the tensor. It shares their memory."""
    dtype: torch.dtype = getattr(torch, location.dtype.value)
    return torch.from_numpy(block).view(dtype).view(location.shape)
