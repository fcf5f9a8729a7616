"""The file of constants beside an engine's graph, which is needed only until the engine is built.

Where TensorRT takes quantised weights or scales as constants only, it takes them as the direct input of their
DequantizeLinear, whole and in its own number format. So what a product packs is written once more, one tensor behind
the other, and int4 in two's complement, where compressed-tensors stores codes plus 8.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..checkpoint.tensor_location import TensorLocation
from ..errors import DiskFullError
from ..specs import format_bytes

CONSTANTS_FILE = "constants.bin"

_BLOCK_BYTES = 4 << 20
_FLIP_TOP_BITS = np.uint8(0x88)
"""(x + 8) as an unsigned nibble becomes x in two's complement when its top bit is flipped."""


class EngineConstants:
    """Constants that have a place in `CONSTANTS_FILE`, which `write` writes."""

    def __init__(self, folder: Path) -> None:
        """Args: `folder`, that of the graph."""
        self._folder = folder
        self._parts: list[tuple[TensorLocation, bool]] = []
        self._end = 0

    def place(
        self, name: str, parts: Sequence[TensorLocation], dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.ExternalTensor:
        """A constant of these tensors one behind the other; int4 is what compressed-tensors has as code plus 8."""
        offset, length = self._end, sum(part.length for part in parts)
        self._parts += [(part, dtype is ir.DataType.INT4) for part in parts]
        self._end += length
        return ir.ExternalTensor(
            CONSTANTS_FILE, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self._folder
        )

    def write(self) -> tuple[Path, ...]:
        """Write the file, 4 MiB in memory at a time; returns it, or nothing if there is no constant.

        Raises: DiskFullError before anything is written.
        """
        if not self._parts:
            return ()
        free = shutil.disk_usage(self._folder).free
        if self._end > free:
            raise DiskFullError(
                f"not enough disk for the constants of the engine's graph: {format_bytes(self._end)} needed, "
                f"{format_bytes(free)} free: free some space or choose another --output"
            )
        path = self._folder / CONSTANTS_FILE
        with path.open("xb") as file:
            for block in self._blocks():
                file.write(block.data)
        return (path,)

    def _blocks(self) -> Iterator[NDArray[np.uint8]]:
        for part, flip in self._parts:
            raw = part.raw()
            for begin in range(0, part.length, _BLOCK_BYTES):
                block = raw[begin : begin + _BLOCK_BYTES]
                yield block ^ _FLIP_TOP_BITS if flip else block
