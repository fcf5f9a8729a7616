"""Where a tensor of a checkpoint lies, once its header entry has been checked."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..specs import DType
from .safetensors_header import StoredTensor


class TensorFile(Protocol):
    """A file that holds tensors: an `OpenedFile`, or a `ConvertedFile` that nobody has written."""

    path: Path
    """For messages. Its last part is the name of the file in a bundle."""
    size: int
    """Bytes."""
    error: type[InputError]
    """What is raised for whatever is wrong with the file."""

    def require_unchanged(self) -> None:
        """Refuse what was read if something wrote to the file meanwhile. Raises: `error`."""

    def remember(self, offset: int, length: int, sha256: str) -> None:
        """Keep the SHA-256 of a range of bytes. Raises: `error` if the same range had another one before."""

    def remembered(self, offset: int, length: int) -> str | None:
        """SHA-256 of a range of bytes as it was read. None if nobody has hashed just this range."""

    def is_at(self, status: os.stat_result) -> bool:
        """True if `status` is of this very file."""

    def copied(self, target: Path) -> Iterator[int]:
        """Copy the file to the new file `target`. Gives the bytes of each block that is copied. Raises: `error`."""

    def blocks(self, offset: int, length: int) -> Iterator[memoryview]:
        """Read a range of bytes in blocks, each valid until the next. Raises: `error`."""

    def read_into(self, offset: int, block: memoryview) -> None:
        """Fill `block`, of bytes, from `offset`. Raises: `error`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLocation:
    """The bytes of a tensor: little endian, row major, contiguous."""

    file: TensorFile
    """A shard of the checkpoint, or the file of what is converted."""
    offset: int
    """Bytes from the start of the file; not always a multiple of the element size."""
    length: int
    """Bytes."""
    dtype: DType
    shape: tuple[int, ...]

    def read(self) -> NDArray[np.uint8]:
        """Read the bytes, which the caller hands to `remember`. Raises: the error of the file if it was cut off."""
        # A mapped file that somebody cuts off ends the process with a bus error.
        block = np.empty(self.length, np.uint8)
        self.file.read_into(self.offset, block.data)
        return block

    def raw(self) -> NDArray[np.uint8]:
        """Read the bytes, and remember their hash. Raises: as `read`, or if they are not what was hashed before."""
        block = self.read()
        self.remember(block)
        return block

    def remember(self, block: NDArray[np.uint8]) -> None:
        """Hash the bytes that `read` gave. Raises: the error of the file if they are not what was hashed before."""
        self.file.remember(self.offset, self.length, hashlib.sha256(block.data).hexdigest())

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the bytes as they were read, in hexadecimal digits. None if nobody has hashed them."""
        return self.file.remembered(self.offset, self.length)


def locate(
    file: TensorFile,
    name: str,
    stored: StoredTensor,
    dtypes: Mapping[str, DType],
    shapes: Sequence[tuple[int, ...]],
    convert: str,
) -> TensorLocation:
    """The tensor `name` of a file, if it has one of these types (by their words in safetensors) and of these shapes.

    Args: `convert` tells a user what to do about another type.
    Raises: the error of the file, naming file and tensor.
    """
    dtype = dtypes.get(stored.dtype)
    if dtype is None:
        expected = f"expected {'one of ' if len(dtypes) > 1 else ''}{', '.join(dtypes)}"
        raise file.error(f"{file}: {name} has type {stored.dtype}, {expected}: {convert}")
    if stored.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise file.error(f"{file}: {name} has shape {list(stored.shape)}, but config.json calls for {wanted}")
    size = dtype.bytes * math.prod(stored.shape)
    if stored.length != size:
        raise file.error(
            f"{file}: {name} takes {stored.length} bytes, but its shape and type need {size}: download the file again"
        )
    return TensorLocation(file=file, offset=stored.offset, length=stored.length, dtype=dtype, shape=stored.shape)
