"""How an operator's kernels are launched, as data that Python interprets and `plugins/aot` turns into C++.

A launch names a Triton kernel and its grid. Its arguments follow from the kernel's own parameter names:

* `<tensor>_ptr` is the buffer of that name: an input, an output or a workspace of the operator. An output that updates
  an input has no buffer of its own; kernels take the input's. Buffers are contiguous and start at a multiple of 16
  bytes, which a compiler may be told.
* a `tl.constexpr` parameter is fixed at compile time, by `Launch.constexprs` or as one of
  `KernelSet.variant_attributes`;
* any other parameter is the dimension, integer attribute or float attribute of that name, passed as int32 or float32.
  A compiler must not specialise on its value.

Grids and workspace shapes are expressions over dimensions and integer attributes (`expr.py`), never over positions, so
that a captured CUDA graph serves every step of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .contract import Rule
from .expr import evaluate


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Scratch buffer of one call; contents are undefined on entry."""

    name: str
    dtype: str
    """`X` or a concrete type name."""
    shape: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One kernel launch of a sequence; launches of a sequence run in order on one stream."""

    kernel: Callable[..., Any]
    """The `@triton.jit` function; its name is the kernel's name everywhere."""
    grid: tuple[str, str, str]
    num_warps: int
    num_stages: int
    constexprs: Mapping[str, int] = field(default_factory=dict)
    """Tile sizes and the like. `head_dim` and other variant values are added from `KernelSet.variant_attributes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSet:
    """All launches of one operator."""

    workspaces: tuple[Workspace, ...]
    prefill: tuple[Launch, ...]
    """Serves any T."""
    decode: tuple[Launch, ...]
    """Serves T == 1 only."""
    variant_attributes: tuple[str, ...]
    """Integer attributes that are compile-time constants of the kernels, by name; also `constexpr` parameters."""
    aot_variants: tuple[Mapping[str, int], ...]
    """The values of `variant_attributes` that cubins are shipped for; others are refused when an engine is built."""
    aot_dtypes: tuple[str, ...]
    """Activation types that cubins are shipped for."""
    rules: tuple[Rule, ...] = ()
    """What the kernels need of the integer attributes beyond the operator's contract."""


def unsupported_reason(kernel_set: KernelSet, attributes: Mapping[str, int | float], dtype: str) -> str | None:
    """Why the shipped cubins cannot serve an operator with these attributes, naming the one at fault; None if they can.

    Args: all attributes of the operator by name; `dtype` its activation type, as in `specs.DType`.
    """
    if dtype not in kernel_set.aot_dtypes:
        return f"activations are {dtype}, kernels exist for {', '.join(kernel_set.aot_dtypes)}"
    variant = {name: int(attributes[name]) for name in kernel_set.variant_attributes}
    if variant not in [dict(v) for v in kernel_set.aot_variants]:
        return f"{_assignments(variant)}: kernels exist for {'; '.join(map(_assignments, kernel_set.aot_variants))}"
    return broken_rule(kernel_set, attributes)


def broken_rule(kernel_set: KernelSet, attributes: Mapping[str, int | float]) -> str | None:
    """The first of the kernels' rules that the attributes break, with its values; None if they keep all."""
    integers = {name: value for name, value in attributes.items() if isinstance(value, int)}
    for rule in kernel_set.rules:
        if not rule.holds(integers):
            left, right = evaluate(rule.left, integers), evaluate(rule.right, integers)
            return f"{rule.left} is {left}, kernels need {rule.relation} {right}: {rule.doc}"
    return None


def _assignments(variant: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in variant.items())
