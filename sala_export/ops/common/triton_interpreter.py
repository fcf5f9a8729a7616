"""Where Triton's interpreter computes otherwise than a GPU, or wastes time, put right while kernels run in it.

It keeps bfloat16 as uint16: `tl.dot` multiplies the integers that hold the bits, casts from float32 truncate, and casts
to float32 spoil subnormal numbers. Casts to e4m3 lose the carry of a mantissa that is rounded up to 2, -31.4 to -16,
and do not saturate. Drop each part when the oldest supported Triton does it right: 3.6 to 3.9 do not. And its products
come from a BLAS, whose sums differ between columns that hold equal numbers, where a tensor core adds every element in
one order: equal keys must have equal scores, for ties decide.

And it replaces the language by what interprets it once more for each call of a function in a kernel, which takes a
quarter of all time. 3.9 still does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from ...numerics.rounding import round_e4m3

_E4M3_NAN = 0x7F


def is_interpreted(kernel: Callable[..., Any]) -> bool:
    """True if Triton runs a `@triton.jit` function in its interpreter."""
    return isinstance(kernel, InterpretedFunction)


@contextmanager
def gpu_arithmetic() -> Iterator[None]:
    """Give kernels interpreted inside it the products and the roundings to bfloat16 and e4m3 that a GPU has."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    round_float = InterpreterBuilder.create_fp_to_fp
    replace_language = interpreter._patch_lang

    def create_dot(self: InterpreterBuilder, a: Any, b: Any, d: Any, *_: Any) -> Any:
        # In float64 the order of a sum no longer shows after the rounding to float32.
        product = np.matmul(_widened(a), _widened(b)).astype(d.data.dtype)
        return TensorHandle(product + d.data, d.dtype.scalar)

    def cast_impl(self: InterpreterBuilder, src: Any, dst_type: Any) -> Any:
        types = (src.dtype.scalar, dst_type.scalar)
        if types == (tl.float32, tl.bfloat16):
            return TensorHandle(_rounded(src.data), tl.bfloat16)
        if types == (tl.bfloat16, tl.float32):
            return TensorHandle(_float32(src.data), tl.float32)
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: InterpreterBuilder, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.float8e4nv):
            return TensorHandle(_e4m3(src.data), tl.float8e4nv)
        return round_float(self, src, dst_type, rounding_mode)

    def replace_language_once(function: Callable[..., Any]) -> Any:
        if any(module in (tl, tl.core) and tl.core.is_builtin(module.load) for module in _modules(function)):
            return replace_language(function)
        return interpreter._LangPatchScope()

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    interpreter._patch_lang = replace_language_once
    try:
        yield
    finally:
        InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dot, cast
        InterpreterBuilder.create_fp_to_fp = round_float
        interpreter._patch_lang = replace_language


def _modules(function: Callable[..., Any]) -> Iterator[ModuleType]:
    """The modules among the names that a function sees."""
    return (value for value in function.__globals__.values() if isinstance(value, ModuleType))


def _widened(operand: Any) -> Any:
    """The values of an operand in float64, which holds them exactly."""
    values = operand.data
    if operand.dtype.scalar == tl.bfloat16:
        values = _float32(values)
    return values.astype(np.float64)


def _float32(bits: Any) -> Any:
    """The numbers whose bits as bfloat16 these are, uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: Any) -> Any:
    """float32 to the bits of the nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x0040
    return np.where(np.isnan(values), quiet_nan, nearest).astype(np.uint16)


def _e4m3(values: Any) -> Any:
    """float32 to the bits of the nearest e4m3, as uint8: what is larger than 448 is 448, and there is one NaN."""
    codes = round_e4m3(torch.from_numpy(np.ascontiguousarray(values))).view(torch.uint8).numpy()
    return np.where(np.isnan(values), _E4M3_NAN, codes).astype(np.uint8)
