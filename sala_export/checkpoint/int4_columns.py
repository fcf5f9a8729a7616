"""The int4 weights of GPTQ and AWQ as compressed-tensors stores them: the same codes and scales, in another order.

Both keep a weight [out, in] as a matrix of [in, out] with eight codes in an int32, and scales as [groups, out]. Both
store a zero point for each scale. Here codes are symmetric, so each zero point must be 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..files import OpenedFile
from ..specs import DType
from .compressed_tensors_config import ORIGINAL
from .converted_file import CONVERTED_FILE, ConvertedFile
from .float_types import FLOAT_TYPES
from .keymap import Weight
from .quantization import Layout, Packing, Quantization
from .safetensors_header import TYPE_NAMES, StoredTensor
from .safetensors_writer import NewTensor
from .tensor_location import TensorLocation, locate

_PER_WORD = 8
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_INT32 = {TYPE_NAMES[DType.INT32]: DType.INT32}

Found = Mapping[str, tuple[OpenedFile, StoredTensor]]
"""File and header entry of tensors, by name."""


def converted_int4(weights: Iterable[Weight], quantization: Quantization, found: Found, folder: Path) -> ConvertedFile:
    """A file of `weight_packed` and `weight_scale` of these weights.

    Zero points and orders of inputs are read, codes and scales not yet. Args: `folder`, of the checkpoint.
    Raises: the error of a file, or UnsupportedError, naming file and tensor.
    """
    tensors = [tensor for weight in weights for tensor in _tensors(weight, quantization.layout, found)]
    return ConvertedFile(folder / CONVERTED_FILE, tensors, [file for file, _ in found.values()])


def _tensors(weight: Weight, layout: Layout, found: Found) -> tuple[NewTensor, NewTensor]:
    (outputs, inputs), module = weight.shape, weight.name.removesuffix("weight")

    def source(role: str, dtypes: Mapping[str, DType], *shapes: tuple[int, ...]) -> TensorLocation:
        file, stored = found[module + role]
        return locate(file, module + role, stored, dtypes, shapes, ORIGINAL)

    rows = layout.packing is Packing.ROWS
    codes = source("qweight", _INT32, (inputs // _PER_WORD, outputs) if rows else (inputs, outputs // _PER_WORD))
    counts = [count for count in range(1, inputs // _PER_WORD + 1) if inputs % count == 0]
    scales = source("scales", FLOAT_TYPES, *((count, outputs) for count in counts))
    groups = scales.shape[0]
    _require_zeros(source("qzeros", _INT32, (groups, outputs // _PER_WORD)), f"{module}qzeros", layout)
    if "g_idx" in layout.sources:
        _require_in_order(source("g_idx", _INT32, (inputs,)), f"{module}g_idx", groups)
    return (
        NewTensor(
            name=f"{module}weight_packed",
            dtype=TYPE_NAMES[DType.INT32],
            shape=(outputs, inputs // _PER_WORD),
            blocks=lambda: [_turned(_words(codes)) if rows else _from_columns(_words(codes))],
        ),
        NewTensor(
            name=f"{module}weight_scale",
            dtype=TYPE_NAMES[scales.dtype],
            shape=(outputs, groups),
            blocks=lambda: [_turned(scales.raw().view(f"<u{scales.dtype.bytes}").reshape(scales.shape))],
        ),
    )


def _words(where: TensorLocation) -> NDArray[np.uint32]:
    return where.raw().view("<u4").reshape(where.shape)


def _turned(matrix: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    return np.ascontiguousarray(matrix.T)


def _from_columns(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """AWQ's codes [in, out / 8] as words of eight inputs, [out, in / 8]."""
    inputs, columns = words.shape
    packed = np.zeros((columns, _PER_WORD, inputs // _PER_WORD), np.uint32)
    by_input = words.reshape(-1, _PER_WORD, columns)
    for place, column in enumerate(_AWQ_ORDER):
        for row in range(_PER_WORD):
            code = by_input[:, row].T >> np.uint32(4 * place) & np.uint32(15)
            packed[:, column] |= code << np.uint32(4 * row)
    return packed.reshape(columns * _PER_WORD, -1)


def _require_zeros(where: TensorLocation, name: str, layout: Layout) -> None:
    """Raises: UnsupportedError unless every zero point is 8."""
    words = _words(where)
    expected = np.uint32(sum(layout.zero << 4 * place for place in range(_PER_WORD)))
    other = words[words != expected]
    if other.size:
        places = [int(other[0]) >> 4 * place & 15 for place in range(_PER_WORD)]
        stored = next(code for code in places if code != layout.zero)
        raise UnsupportedError(
            f"{where.file}: {name} holds the zero point {(stored + 8 - layout.zero) % 16}, expected 8 everywhere: "
            f"asymmetric weights are not taken; {ORIGINAL}"
        )


def _require_in_order(where: TensorLocation, name: str, groups: int) -> None:
    """Raises: UnsupportedError unless each group is of inputs that follow one another."""
    stored = where.raw().view("<i4")
    expected = np.arange(stored.size, dtype=np.int32) // (stored.size // groups)
    wrong = np.flatnonzero(stored != expected)
    if wrong.size:
        first = wrong[0]
        raise UnsupportedError(
            f"{where.file}: {name} puts input {first} into group {stored[first]}, expected {expected[first]}: columns "
            f"must stay in their order (desc_act false); {ORIGINAL}"
        )
