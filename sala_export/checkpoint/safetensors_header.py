"""Where the tensors of a safetensors file lie, read from its header alone.

The file is: header length (8 bytes, little endian), header (JSON: name -> dtype, shape, data_offsets), data. The header
is read here, not through the safetensors library, because the library hides the byte offsets that an ONNX graph needs
to point at weights in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..specs import DType

LENGTH_BYTES = 8
"""Size of the header length at the start of the file."""

TYPE_NAMES: Mapping[DType, str] = {
    DType.FLOAT32: "F32",
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
    DType.FLOAT8_E4M3FN: "F8_E4M3",
    DType.INT8: "I8",
    DType.UINT8: "U8",
    DType.INT32: "I32",
    DType.INT64: "I64",
}
"""Element types as the format spells them."""

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library; a larger number is the start of some other kind of file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One entry of a header."""

    dtype: str
    """As the format spells it: `BF16`, `F32`, `F8_E4M3`, ..."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    length: int
    """Bytes."""


def read_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file by name; the data is not read, only checked to be there.

    Raises: CheckpointError if the file cannot be read, is truncated or its header is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            text = file.read(min(header_bytes, _MAX_HEADER_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if header_bytes > _MAX_HEADER_BYTES:
        raise _damaged(path, f"its header claims {header_bytes} bytes")
    data_start = LENGTH_BYTES + header_bytes
    if size < data_start:
        raise _truncated(path, size, data_start)
    tensors = _parse(path, text, data_start)
    end = max((tensor.offset + tensor.length for tensor in tensors.values()), default=data_start)
    if size < end:
        raise _truncated(path, size, end)
    return tensors


def _parse(path: Path, text: bytes, data_start: int) -> dict[str, StoredTensor]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return {
        name: _stored_tensor(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"
    }


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            all(isinstance(extent, int) and extent >= 0 for extent in shape) and 0 <= begin <= end
        ):
            return StoredTensor(dtype=dtype, shape=tuple(shape), offset=data_start + begin, length=end - begin)
    raise _damaged(path, f"its header entry of {name} is malformed")


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a valid safetensors file: {what}; download it again")


def _truncated(path: Path, size: int, needed: int) -> CheckpointError:
    return CheckpointError(f"{path} is truncated: it has {size} bytes, its header needs {needed}; download it again")
