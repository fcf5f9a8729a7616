"""A safetensors file that nobody has written: each of its tensors is made of others whenever it is read.

For example, GPTQ stores codes as [in / 8, out], and every graph takes them as [out, in / 8]. A build writes this file
beside its graph. Until then only the tensor that is read is in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from ..files import OpenedFile
from .safetensors_header import StoredTensor
from .safetensors_writer import NewTensor, header_of

CONVERTED_FILE = "converted.safetensors"


class ConvertedFile:
    """See `tensor_location.TensorFile`. Several threads may read it at once, each with a tensor of its own in memory.

    The same bytes come out each time, or the error of the source that was changed.
    """

    def __init__(self, path: Path, tensors: Sequence[NewTensor], sources: Sequence[OpenedFile]) -> None:
        """Args: `path`, for messages and for the name of the file in a bundle; `sources`, the files that are read."""
        self.path = path
        self.error: type[InputError] = sources[0].error
        self._sources = tuple(dict.fromkeys(sources))
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._header = header_of(tensors)
        self._hashes: dict[tuple[int, int], str] = {}
        self._offsets: dict[str, int] = {}
        self.size = len(self._header)
        for tensor in tensors:
            self._offsets[tensor.name] = self.size
            self.size += tensor.bytes

    def __str__(self) -> str:
        """For messages: where its sources lie, because nobody finds a file that is not written."""
        return f"{self.path.parent} (converted)"

    def tensors(self) -> dict[str, StoredTensor]:
        """The entries of the header, by name."""
        return {
            name: StoredTensor(dtype=tensor.dtype, shape=tensor.shape, offset=self._offsets[name], length=tensor.bytes)
            for name, tensor in self._tensors.items()
        }

    def require_unchanged(self) -> None:
        """Refuse what was read if something wrote to a source meanwhile. Raises: the error of the source."""
        for source in self._sources:
            source.require_unchanged()

    def remember(self, offset: int, length: int, sha256: str) -> None:
        """Keep the SHA-256 of a range of bytes that was read. Raises: as `OpenedFile.remember`."""
        if self._hashes.setdefault((offset, length), sha256) != sha256:
            raise self.error(f"{self.path} gave other bytes than before: try again when nothing writes to the weights")

    def remembered(self, offset: int, length: int) -> str | None:
        """SHA-256 of a range of bytes as it was read. None if nobody has hashed just this range."""
        return self._hashes.get((offset, length))

    def is_at(self, status: os.stat_result) -> bool:
        """Say False, because no path leads to a file that is computed."""
        return False

    def blocks(self, offset: int, length: int) -> Iterator[memoryview]:
        """Make a range of bytes, a tensor or a part of one at a time. Raises: the error of a source."""
        end = offset + length
        if offset < len(self._header):
            yield memoryview(self._header)[offset:end]
        for name, begin in self._offsets.items():
            for block in self._tensors[name].blocks() if self._overlaps(name, offset, end) else ():
                part = memoryview(block.data).cast("B")
                yield from _not_empty(part[max(offset - begin, 0) : max(end - begin, 0)])
                begin += part.nbytes

    def read_into(self, offset: int, block: memoryview) -> None:
        """Fill `block`, of bytes, from `offset`. Raises: the error of a source."""
        for part in self.blocks(offset, len(block)):
            block[: len(part)] = part
            block = block[len(part) :]

    def copied(self, target: Path) -> Iterator[int]:
        """Write the new file `target`. Gives the bytes of each block that is written."""
        with target.open("xb") as file:
            for block in self.blocks(0, self.size):
                file.write(block)
                yield block.nbytes

    def _overlaps(self, name: str, offset: int, end: int) -> bool:
        begin = self._offsets[name]
        return begin < end and offset < begin + self._tensors[name].bytes


def _not_empty(part: memoryview) -> Iterator[memoryview]:
    if part:
        yield part
