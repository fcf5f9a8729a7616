"""Where the tensors of a safetensors file lie, read from its header alone.

The file is: header length (8 bytes, little endian), header (JSON: name -> dtype, shape, data_offsets), data. The header
is read here, not through the safetensors library, because the library hides the byte offsets that an ONNX graph needs
to point at weights in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..files import OpenedFile
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

_LARGEST_OFFSET = 2**63 - 1
_MAX_HEADER_BYTES = 16 << 20
"""As in the C++ runtime. A thousand layers take less than 1 MiB; a larger number begins some other kind of file."""


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


def read_header(file: OpenedFile) -> dict[str, StoredTensor]:
    """All tensors of a file by name; the data is not read, only checked to be there.

    Raises: the error of the file if it cannot be read, is truncated or its header is damaged.
    """
    if file.size < LENGTH_BYTES:
        raise _truncated(file, LENGTH_BYTES)
    header_bytes = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise _damaged(file, f"its header claims {header_bytes} bytes")
    data_start = LENGTH_BYTES + header_bytes
    if file.size < data_start:
        raise _truncated(file, data_start)
    tensors = _parse(file, file.read(LENGTH_BYTES, header_bytes), data_start)
    end = max((tensor.offset + tensor.length for tensor in tensors.values()), default=data_start)
    if file.size < end:
        raise _truncated(file, end)
    return tensors


def _parse(file: OpenedFile, text: bytes, data_start: int) -> dict[str, StoredTensor]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    return {
        name: _stored_tensor(file, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"
    }


def _stored_tensor(file: OpenedFile, name: str, entry: Any, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            all(_is_count(number) for number in (*shape, begin, end)) and begin <= end
        ):
            return StoredTensor(dtype=dtype, shape=tuple(shape), offset=data_start + begin, length=end - begin)
    raise _damaged(file, f"its header entry of {name} is malformed")


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number <= _LARGEST_OFFSET


def _damaged(file: OpenedFile, what: str) -> InputError:
    return file.error(f"{file} is not a valid safetensors file: {what}; download it again")


def _truncated(file: OpenedFile, needed: int) -> InputError:
    return file.error(f"{file} is truncated: it has {file.size} bytes, its header needs {needed}; download it again")
