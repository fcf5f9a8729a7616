"""The file of constants beside an engine's graph, which is needed only until the engine is built.

Where TensorRT takes quantised weights or scales as constants only, it takes them as the direct input of their
DequantizeLinear, whole and in its own number format. So what a product packs is written once more.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..checkpoint.float_types import as_float32, to_bfloat16
from ..checkpoint.tensor_location import TensorLocation
from ..errors import DiskFullError
from ..specs import format_bytes

CONSTANTS_FILE = "constants.bin"

Arrays = Callable[[], Iterable[NDArray[np.uint8]]]
"""Gives the bytes of a constant, array after array."""

_FLIP_TOP_BITS = np.uint8(0x88)
"""(x + 8) as an unsigned nibble becomes x in two's complement when its top bit is flipped."""
_ROWS_AT_ONCE = 64
"""Rows whose bytes stay in a processor's cache while they are turned into columns."""


class EngineConstants:
    """Constants that have a place in `CONSTANTS_FILE`, which `write` writes."""

    def __init__(self, folder: Path) -> None:
        """Args: `folder`, that of the graph."""
        self._folder = folder
        self._arrays: list[Arrays] = []
        self._end = 0

    def place(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], arrays: Arrays) -> ir.ExternalTensor:
        """A constant behind those placed before; `arrays` is called when the file is written."""
        offset, length = self._end, math.ceil(math.prod(shape) * dtype.itemsize)
        self._arrays.append(arrays)
        self._end += length
        return ir.ExternalTensor(
            CONSTANTS_FILE, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self._folder
        )

    def write(self) -> tuple[Path, ...]:
        """Write the file, one array in memory at a time; returns it, or nothing if there is no constant.

        Raises: DiskFullError before anything is written.
        """
        if not self._arrays:
            return ()
        free = shutil.disk_usage(self._folder).free
        if self._end > free:
            raise DiskFullError(
                f"not enough disk for the constants of the engine's graph: {format_bytes(self._end)} needed, "
                f"{format_bytes(free)} free: free some space or choose another --output"
            )
        path = self._folder / CONSTANTS_FILE
        with path.open("xb") as file:
            for arrays in self._arrays:
                for array in arrays():
                    file.write(array.data)
        return (path,)


def int4_columns(parts: Sequence[TensorLocation]) -> NDArray[np.uint8]:
    """Codes of compressed-tensors, rows of [out, in], as int4 [in, out] in two's complement.

    Two to a byte, here [in, out / 2], the first in the low bits; out is that of all parts together, an even number.
    """
    rows = np.concatenate([part.raw().reshape(part.shape[0], -1) for part in parts])
    outputs, pairs = rows.shape
    columns = np.empty((pairs, 2, outputs // 2), np.uint8)
    for begin in range(0, outputs, _ROWS_AT_ONCE):
        block = rows[begin : begin + _ROWS_AT_ONCE] ^ _FLIP_TOP_BITS
        first, second = block[0::2], block[1::2]
        place = slice(begin // 2, begin // 2 + len(first))
        columns[:, 0, place] = ((first & 0x0F) | (second << 4)).T
        columns[:, 1, place] = ((first >> 4) | (second & 0xF0)).T
    return columns


def scale_columns(parts: Sequence[TensorLocation], blocks: int) -> NDArray[np.uint8]:
    """Scales as bf16, bytes of [blocks, out]: from rows of [out, blocks], or of fewer that each hold for several.

    Those of another float type are rounded to the nearest, ties to even.
    """
    rows = [as_float32(part.raw(), part.dtype).reshape(part.shape) for part in parts]
    whole = np.concatenate([part.repeat(blocks // part.shape[1], 1) for part in rows])
    return np.ascontiguousarray(to_bfloat16(whole).T).view(np.uint8)
