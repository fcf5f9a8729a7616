"""Where Triton's interpreter computes otherwise than a GPU, put right while kernels run in it.

It keeps bfloat16 as uint16: `tl.dot` multiplies the integers that hold the bits, and casts from float32 truncate (drop
that part when the oldest supported Triton does both right; 3.6 to 3.9 do not). And its products come from a BLAS, whose
sums differ between columns that hold equal numbers, where a tensor core adds every element in one order: equal keys
must have equal scores, for ties decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle


def is_interpreted(kernel: Callable[..., Any]) -> bool:
    """True if Triton runs a `@triton.jit` function in its interpreter."""
    return isinstance(kernel, InterpretedFunction)


@contextmanager
def gpu_arithmetic() -> Iterator[None]:
    """Give kernels interpreted inside it the products and the bfloat16 roundings that a GPU has."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: InterpreterBuilder, a: Any, b: Any, d: Any, *_: Any) -> Any:
        # In float64 the order of a sum no longer shows after the rounding to float32.
        product = np.matmul(_widened(a), _widened(b)).astype(d.data.dtype)
        return TensorHandle(product + d.data, d.dtype.scalar)

    def cast_impl(self: InterpreterBuilder, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return TensorHandle(_rounded(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    try:
        yield
    finally:
        InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dot, cast


def _widened(operand: Any) -> Any:
    """The values of an operand in float64, which holds them exactly."""
    values = operand.data
    if operand.dtype.scalar == tl.bfloat16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _rounded(values: Any) -> Any:
    """float32 to the bits of the nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x0040
    return np.where(np.isnan(values), quiet_nan, nearest).astype(np.uint16)
