"""Matrix products of a step, with the rounding of their inputs if the weights are quantised.

A quantised weight is dequantised when it is loaded, and takes the memory of a plain one. Its input is rounded before
each product as the format rounds it (`model.emulation`), so the numbers are those of an engine but for the rounding of
sums and of the dequantised weight to the type of the activations. bf16 holds weights and inputs of mxfp8 exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.emulation import fake_quantize
from ..specs import Precision

_ROUNDED_ELEMENTS = 1 << 20
"""Elements that are rounded at once, in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """The rounding of an input."""

    precision: Precision
    scale: float | None
    """fp32. See `fake_quantize`. None if scales are taken here, of each row, or in mxfp8 of each group of it."""

    def __call__(self, x: Tensor) -> None:
        """Round x [rows, in] in place."""
        rows = max(1, _ROUNDED_ELEMENTS // x.shape[1])
        for part in torch.split(x, rows):
            part.copy_(fake_quantize(part, self.precision, self._scale_of(part)))

    def _scale_of(self, x: Tensor) -> Tensor | None:
        if self.scale is None:
            return None
        # Written on the device: a copy from the host could not be part of a CUDA graph.
        return torch.full((), self.scale, dtype=torch.float32, device=x.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    rows: slice
    """Of the packed weight, and columns of the result."""
    rounding: Rounding | None


class PackedProduct:
    """The product of an input with a packed weight [out, in]."""

    def __init__(self, weight: Tensor, roundings: Sequence[tuple[int, Rounding | None]] = ()) -> None:
        """Args: `roundings`: the rows of each weight in the pack, in order, with the rounding of its input."""
        self.weight = weight
        parts = _joined(roundings or [(weight.shape[0], None)])
        # Rounding is in place, so what takes the input as it is comes first.
        parts.sort(key=lambda part: part.rounding is not None)
        self._parts = [(part, weight[part.rows].t()) for part in parts]

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Write `x [rows, in] @ weight.T` to `out` [rows, out]. Rounds `x` in place: nobody may read it afterwards."""
        *others, last = self._parts
        for part, columns in others:
            _multiply(x if part.rounding is None else x.clone(), part, columns, out)
        _multiply(x, *last, out)


def _multiply(x: Tensor, part: _Part, columns: Tensor, out: Tensor) -> None:
    if part.rounding is not None:
        part.rounding(x)
    torch.mm(x, columns, out=out[:, part.rows])


def _joined(roundings: Sequence[tuple[int, Rounding | None]]) -> list[_Part]:
    """Neighbours whose input is rounded alike, as one product."""
    parts: list[_Part] = []
    for rows, rounding in roundings:
        start = parts[-1].rows.stop if parts else 0
        alike = bool(parts) and parts[-1].rounding == rounding
        begin = parts.pop().rows.start if alike else start
        parts.append(_Part(rows=slice(begin, start + rows), rounding=rounding))
    return parts
