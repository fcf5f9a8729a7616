"""Hashes of tensors that are computed while others are read."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from sala_export.checkpoint import background_hashes
from sala_export.checkpoint.background_hashes import BackgroundHashes
from sala_export.checkpoint.tensor_location import TensorLocation
from sala_export.errors import CheckpointError
from sala_export.files import OpenedFile
from sala_export.specs import DType

LENGTHS = (900, 100, 400, 400, 50, 1200, 1)
"""Bytes of the tensors, which lie one behind the other."""


@pytest.fixture
def tensors(tmp_path: Path) -> list[TensorLocation]:
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(sum(LENGTHS)))
    file, offset, found = OpenedFile.open(tmp_path / "file", error=CheckpointError), 0, []
    for length in LENGTHS:
        found.append(
            TensorLocation(file=file, offset=offset, length=length, dtype=DType.UINT8, shape=(length,)),
        )
        offset += length
    return found


def test_each_tensor_has_the_hash_of_its_bytes(tensors: list[TensorLocation]) -> None:
    hashes, content = BackgroundHashes(), tensors[0].file.path.read_bytes()
    assert [where.sha256 for where in tensors] == [None] * len(tensors)
    for where in tensors:
        assert hashes.read(where).tobytes() == content[where.offset : where.offset + where.length]
    hashes.wait()
    ends = np.cumsum(LENGTHS).tolist()
    expected = [content[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert [where.sha256 for where in tensors] == [hashlib.sha256(text).hexdigest() for text in expected]


def test_tensors_that_wait_take_no_more_memory_than_the_limit_or_the_largest(
    tensors: list[TensorLocation], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    read, remember = TensorLocation.read, TensorLocation.remember

    def counted_read(self: TensorLocation) -> np.ndarray:
        count(self.length)
        return read(self)

    def counted_remember(self: TensorLocation, block: np.ndarray) -> None:
        remember(self, block)
        count(-self.length)

    monkeypatch.setattr(background_hashes, "_MOST_BYTES", 1000)
    monkeypatch.setattr(TensorLocation, "read", counted_read)
    monkeypatch.setattr(TensorLocation, "remember", counted_remember)
    hashes = BackgroundHashes()
    for where in tensors:
        hashes.read(where)
    hashes.wait()
    assert alive == 0
    assert most <= max(LENGTHS)


def test_other_bytes_in_a_second_read_are_told(tensors: list[TensorLocation]) -> None:
    hashes, path = BackgroundHashes(), tensors[0].file.path
    hashes.read(tensors[2])
    hashes.wait()
    path.write_bytes(bytes(path.stat().st_size))
    hashes.read(tensors[2])
    with pytest.raises(CheckpointError, match="file was changed while it was read: try again"):
        hashes.wait()
