"""`triton.jit` for kernels that are also compiled ahead of time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton


def any_size_kernel(function: Callable[..., Any]) -> Any:
    """A Triton kernel whose code does not depend on the values of its numbers, as that of the shipped cubins.

    Without this, where Python launches a kernel, Triton compiles anew for every number that is 1 or a multiple of 16:
    tests and benchmarks on a GPU would run other code than engines do.
    """
    parameters = inspect.signature(function).parameters.values()
    numbers = [p.name for p in parameters if not p.name.endswith("_ptr") and "constexpr" not in str(p.annotation)]
    return triton.jit(function, do_not_specialize=numbers)
