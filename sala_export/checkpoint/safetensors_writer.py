"""Safetensors files written as a stream, tensors in the order given.

The safetensors library orders tensors by type and name; here the order is the caller's, so that tensors which a graph
reads together lie one behind the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .safetensors_header import LENGTH_BYTES, TYPE_NAMES

_ALIGNMENT_BYTES = 8
_ELEMENT_BYTES = {name: dtype.bytes for dtype, name in TYPE_NAMES.items()}


class Block(Protocol):
    """Consecutive bytes of a tensor, such as a contiguous numpy array."""

    @property
    def data(self) -> memoryview: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTensor:
    """A tensor to be written."""

    name: str
    dtype: str
    """As the format spells it: `BF16`, `F8_E4M3`, ..."""
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Block]]
    """Its bytes, little endian and row major, made when they are written."""

    @property
    def bytes(self) -> int:
        return _ELEMENT_BYTES[self.dtype] * math.prod(self.shape)


def write_safetensors(
    path: Path, tensors: Sequence[NewTensor], advance: Callable[[int], None] = lambda count: None
) -> None:
    """Write a file of the tensors, one block in memory at a time.

    Args: `advance` is told the bytes of every block that was written.
    Raises: ValueError if the blocks of a tensor are not as large as its shape and type say.
    """
    with path.open("wb") as file:
        file.write(header_of(tensors))
        for tensor in tensors:
            written = 0
            for block in tensor.blocks():
                file.write(block.data)
                written += block.nbytes
                advance(block.nbytes)
            if written != tensor.bytes:
                raise ValueError(f"{tensor.name} has {written} bytes, its shape and type need {tensor.bytes}")


def header_of(tensors: Sequence[NewTensor]) -> bytes:
    """What a file of these tensors has before their bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format pads its header with spaces so that data start at a multiple of 8.
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
