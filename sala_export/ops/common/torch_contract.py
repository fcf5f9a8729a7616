"""Contracts applied to torch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .contract import Contract


def bind_call(contract: Contract, tensors: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, int]:
    """Check one call of an operator; returns dimensions and integer attributes by name.

    Raises: ShapeError as `Contract.bind`.
    """
    return contract.bind([t.shape for t in tensors], [str(t.dtype).removeprefix("torch.") for t in tensors], attributes)
