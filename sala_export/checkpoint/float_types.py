"""Float types of weights: the one that a checkpoint counts as, and what becomes of the others.

For example, a checkpoint in bf16 has its norms in fp32. Every tensor stays as it is stored, and whoever computes in
bf16 converts the norms as it loads them. A number that bf16 does not hold would be rounded there, so it is refused
first, unless you asked for bf16 by name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..specs import DType, Precision
from .safetensors_header import TYPE_NAMES
from .tensor_location import TensorLocation

if TYPE_CHECKING:
    from .reader import Checkpoint

FLOAT_TYPES: Mapping[str, DType] = {
    TYPE_NAMES[dtype]: dtype for dtype in (DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32)
}
"""Types of weights that are not quantised, by their words in safetensors."""

_BFLOAT16_BITS = 16
"""bf16 is the upper half of fp32."""

logger = logging.getLogger(__name__)


def common_type(locations: Mapping[str, TensorLocation]) -> DType:
    """The type that a checkpoint counts as: that of most elements of its matrices.

    Projections decide, not the norms, and also where config.json says something else.
    """
    elements: Counter[DType] = Counter()
    for location in locations.values():
        if len(location.shape) > 1:
            elements[location.dtype] += location.length // location.dtype.bytes
    return elements.most_common(1)[0][0]


def convert_weights(checkpoint: Checkpoint, precision: Precision, *, may_round: bool) -> None:
    """Say which weights `precision` narrows, and refuse to round them unasked.

    Without `may_round` the weights of a type that holds more than that of `precision` are read.

    Raises: the error of the file, naming the tensor and its first number that `precision` does not hold.
    """
    target = precision.dtype
    narrowed = {name: where for name, where in checkpoint.locations.items() if not _fits(where.dtype, target)}
    if not narrowed:
        return
    if not may_round:
        for name, where in narrowed.items():
            _require_exact(name, where, precision)
    types = Counter(where.dtype for where in narrowed.values())
    counts = " and ".join(f"{count} weights from {dtype}" for dtype, count in sorted(types.items()))
    how = "rounding to the nearest number what it does not hold" if may_round else "which holds all their numbers"
    logger.warning("%s: converting %s to %s, %s", checkpoint.directory, counts, target, how)


def as_float32(raw: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    """Stored numbers of one of `FLOAT_TYPES`, from their bytes."""
    match dtype:
        case DType.FLOAT32:
            return raw.view("<f4").astype(np.float32, copy=False)
        case DType.FLOAT16:
            return raw.view("<f2").astype(np.float32)
        case _:
            return (raw.view("<u2").astype(np.uint32) << _BFLOAT16_BITS).view(np.float32)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bf16 numbers, ties to even, of finite ones."""
    bits = values.view(np.uint32)
    odd = bits >> _BFLOAT16_BITS & 1
    return ((bits + 0x7FFF + odd) >> _BFLOAT16_BITS).astype(np.uint16)


def _fits(stored: DType, target: DType) -> bool:
    """True if `target` holds every number of `stored`."""
    return target in (stored, DType.FLOAT32)


def _require_exact(name: str, where: TensorLocation, precision: Precision) -> None:
    for block in where.file.blocks(where.offset, where.length):
        # A block is used before the next one takes its place.
        values = as_float32(np.frombuffer(block, np.uint8), where.dtype)
        inexact = np.flatnonzero(~_is_exact(values, precision.dtype))
        if inexact.size:
            raise where.file.error(
                f"{where.file}: {name} is {where.dtype} and holds {float(values[inexact[0]]):.9g}, which "
                f"{precision.dtype} would round: give --precision {precision} to round weights to the nearest"
            )


def _is_exact(values: NDArray[np.float32], target: DType) -> NDArray[np.bool_]:
    """Which numbers `target` holds. NaN and infinity stay what they are."""
    if target is DType.BFLOAT16:
        special = ~np.isfinite(values)
        return np.asarray(special | (values.view(np.uint32) & ((1 << _BFLOAT16_BITS) - 1) == 0))
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float32)
    return np.asarray((narrow == values) | np.isnan(values))
