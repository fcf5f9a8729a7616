"""Defects of Triton's interpreter with bfloat16, worked around while kernels run in it.

The interpreter keeps bfloat16 as uint16. Drop this file when the oldest supported Triton multiplies and rounds such
values right (3.6 to 3.9 do not).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextmanager
def true_bfloat16() -> Iterator[None]:
    """Give kernels interpreted inside it the bfloat16 arithmetic that a GPU has.

    Without it `tl.dot` multiplies the integers that hold the bits, and casts from float32 truncate.
    """
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: InterpreterBuilder, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *rest)

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
    """A bfloat16 operand in float32, which holds its value exactly; others as they are."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(values: Any) -> Any:
    """float32 to the bits of the nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x0040
    return np.where(np.isnan(values), quiet_nan, nearest).astype(np.uint16)
