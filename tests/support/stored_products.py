"""Products of the CPU operator `Linear`: random stored weights, their numbers in float64, and its node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .cpu_operators import runnable_product_levels, simd_level

Array = NDArray[Any]

ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
}

PLAIN = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

MX_BLOCK = 32
"""Neighbours of a row of mxfp8 that share a scale."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A weight as it is stored, and the numbers that it stands for."""

    tensors: tuple[Array, ...]
    numbers: Array
    """float64 [rows, columns], the global scale included."""


def spread(scales: Array, rows: int, columns: int) -> Array:
    """A scale for each number, from one for each block."""
    matrix: Array = scales.astype(np.float64).reshape(scales.shape if scales.ndim == 2 else (-1, 1))
    row_blocks, column_blocks = matrix.shape
    return np.repeat(np.repeat(matrix, rows // row_blocks, 0), columns // column_blocks, 1)


def packed_nibbles(nibbles: Array) -> Array:
    """Bytes of two nibbles each, the low one first."""
    return np.asarray(nibbles[:, 0::2] | nibbles[:, 1::2] << 4, np.uint8)


def plain_weight(rng: np.random.Generator, kind: str, rows: int, columns: int) -> Weight:
    stored = rng.standard_normal((rows, columns)).astype(PLAIN[kind])
    return Weight(tensors=(stored,), numbers=stored.astype(np.float64))


def coded_weight(
    rng: np.random.Generator,
    kind: str,
    rows: int,
    columns: int,
    blocks: tuple[int, ...],
    scale_type: Any,
    global_scale: float = 1.0,
) -> Weight:
    """Random codes of every value. `blocks` is the shape of the scales."""
    scales = rng.uniform(0.5, 2.0, blocks).astype(scale_type)
    if kind == "float8_e4m3fn":
        stored = rng.standard_normal((rows, columns)).astype(ml_dtypes.float8_e4m3fn)
        codes = stored.astype(np.float64)
    elif kind == "int8":
        stored = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
        codes = stored.astype(np.float64)
    else:
        nibbles = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        stored = packed_nibbles(nibbles)
        codes = nibbles.astype(np.float64) - 8
        if kind == "nvfp4":
            codes = np.where(nibbles & 8, -1.0, 1.0) * E2M1[nibbles & 7]
    return Weight(tensors=(stored, scales), numbers=codes * spread(scales, rows, columns) * global_scale)


def mxfp8_weight(rng: np.random.Generator, rows: int, columns: int) -> Weight:
    """Random e4m3 codes but NaN, with the bytes of scales from 2^-4 to 2^4."""
    scales = rng.integers(123, 132, (rows, columns // MX_BLOCK)).astype(np.uint8)
    codes = rng.integers(0, 127, (rows, columns)) | rng.integers(0, 2, (rows, columns)) << 7
    stored = codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    numbers = stored.astype(np.float64) * np.repeat(2.0 ** (scales - 127.0), MX_BLOCK, 1)
    return Weight(tensors=(stored, scales), numbers=numbers)


def mxfp8_inputs(x: Array) -> Array:
    """Inputs [..., columns] as a product of mxfp8 sees them, in float64.

    Each 32 of a row are e4m3 numbers times the least power of two, not below 2^-127, by which they are at most 448.
    All are NaN if one is no finite number.
    """
    with np.errstate(invalid="ignore"):  # NaN that signal
        blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, MX_BLOCK)
    largest = np.abs(blocks).max(-1, keepdims=True)
    mantissa, exponent = np.frexp(largest)  # below 1, where 448 is 0.875 * 2^9
    scales = 2.0 ** np.maximum(exponent - 9 + (mantissa > 0.875), -127)
    scales[~np.isfinite(largest)] = np.nan
    with np.errstate(invalid="ignore"):
        codes = (blocks / scales).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return np.asarray((codes * scales).reshape(x.shape))


def mxfp8_cases() -> Array:
    """Inputs float32 [rows, 96] whose blocks have largest magnitudes of every exponent, and rows of any bits at all.

    Other numbers of a block are up to 2^14 smaller. One in two lies between two codes. In the first of three blocks the
    largest is 1.75 times a power of two, which a scale just holds, or the float above or below.
    """
    rng = np.random.default_rng(7)
    exponents = np.repeat(np.arange(-149, 128), 6).reshape(-1, 1, 1)
    numbers = rng.integers(1, 64, (len(exponents), 3, MX_BLOCK)) / 32  # in five bits, of which codes have four
    numbers *= np.exp2(exponents - rng.integers(0, 14, numbers.shape)) * rng.choice((-1, 1), numbers.shape)
    numbers[:, 0] /= 2
    largest = np.resize([1.75, 1.75 + 2**-23, 1.75 - 2**-23], len(numbers)) * np.exp2(exponents[:, 0, 0])
    numbers[np.arange(len(numbers)), 0, rng.integers(0, MX_BLOCK, len(numbers))] = largest
    bits = rng.integers(0, 1 << 32, (512, 96), np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate((numbers.reshape(-1, 96).astype(np.float32), bits))


def weight(rng: np.random.Generator, kind: str, rows: int, columns: int, global_scale: float = 1.0) -> Weight:
    """A weight with the scales that are usual for its kind."""
    if kind in PLAIN:
        return plain_weight(rng, kind, rows, columns)
    if kind == "mxfp8":
        return mxfp8_weight(rng, rows, columns)
    if kind == "nvfp4":
        return coded_weight(rng, kind, rows, columns, (rows, columns // 16), ml_dtypes.float8_e4m3fn, global_scale)
    if kind == "int4":
        return coded_weight(rng, kind, rows, columns, (rows, max(columns // 128, 1)), ml_dtypes.bfloat16)
    return coded_weight(rng, kind, rows, columns, (rows,), np.float32)


def unaligned(array: Array) -> Array:
    """The same numbers at an address that is a multiple of nothing."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Linear:
    """An ONNX Runtime session of one node `Linear`."""

    def __init__(self, library: Path, tensors: Sequence[Array], *, threads: int = 2, **attributes: Any) -> None:
        names = [f"weight_{i}" for i in range(len(tensors))]
        node = helper.make_node("Linear", ["x", *names], ["y"], domain="sala", **attributes)
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
        values += [
            helper.make_tensor_value_info(name, ELEMENTS[tensor.dtype.name], None)
            for name, tensor in zip(names, tensors, strict=True)
        ]
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "linear", values, [y])
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("sala", 1)]
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(library))
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # tests that provoke an error read it from the exception
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        for name, tensor in zip(names, tensors, strict=True):
            self._bind(name, tensor)
        self._tensors = list(tensors)

    def _bind(self, name: str, tensor: Array) -> None:
        self._binding.bind_input(name, "cpu", 0, ELEMENTS[tensor.dtype.name], tensor.shape, tensor.ctypes.data)

    def __call__(self, x: Array) -> Array:
        self._bind("x", x)
        self._binding.bind_output("y", "cpu")
        self._session.run_with_iobinding(self._binding)
        return np.asarray(self._binding.get_outputs()[0].numpy())


def at_each_level(product: Linear, x: Array) -> Iterator[tuple[str, Array]]:
    """The products of one session with the instructions of each level that this machine has, and the level's name."""
    for level in runnable_product_levels():
        with simd_level(level):
            y = product(x)
        yield level, y
