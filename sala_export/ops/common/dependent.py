"""Waiting in kernels whose launches are dependent (`launch.py`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_earlier_launches(DEPENDENT: tl.constexpr) -> None:
    """All that earlier launches of the stream wrote is there after it."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_launch_begin(DEPENDENT: tl.constexpr) -> None:
    """The next launch of the sequence begins when all programs have come here, or ended."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
