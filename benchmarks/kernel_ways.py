"""Which code of a kernel runs: compiled on this machine, likewise for another architecture, or as it is shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from sala_export.ops.common.contract import Contract
from sala_export.ops.common.launch import KernelSet
from sala_export.ops.common.triton_run import Allocate, BoundCall, bind_kernels

SM80_PATH = 86
"""Whose tiles and instructions `--sm80-path` takes on whatever GPU."""


class Way(StrEnum):
    """How a kernel comes to run."""

    JIT = "jit"
    """Compiled by the Triton of this machine, for its GPU."""
    JIT_SM86 = "jit-sm86"
    """Likewise with the tiles and instructions of SM86: `mma.sync`, as RTX cards multiply."""
    SHIPPED = "shipped"
    """The cubins inside the plugin library, which are what engines run."""

    @property
    def sm(self) -> int | None:
        """The architecture whose tiles are taken; None for that of the GPU."""
        return SM80_PATH if self is Way.JIT_SM86 else None


def bind(
    way: Way,
    contract: Contract,
    kernel_set: KernelSet,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, int | float],
    *,
    allocate: Allocate = torch.empty,
) -> BoundCall:
    """`bind_kernels` for one way.

    Raises: as `bind_kernels`; for `Way.SHIPPED` BuildError if the plugin library is not installed, ShippedError if it
        holds no cubin for a launch or the driver refuses one.
    """
    call = bind_kernels(contract, kernel_set, inputs, attributes, allocate=allocate, sm=way.sm)
    if way is not Way.SHIPPED:
        return call
    # Here, not above: the others need no driver.
    from benchmarks.shipped_cubins import installed_cubins

    activation = next(x.dtype for x in inputs if x.dtype.is_floating_point)
    return installed_cubins().bound(call, str(activation).removeprefix("torch."))


Run = Callable[[str, Sequence[Tensor], Mapping[str, int | float]], dict[str, Tensor]]


def runner(way: Way, allocate: Callable[..., Any]) -> Run:
    """What runs an operator by its name one way; **inputs that an output updates are overwritten**."""
    from sala_export.ops.kernel_sets import KERNEL_SETS
    from sala_export.ops.registry import CONTRACTS

    def run(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
        contract = next(contract for contract in CONTRACTS if contract.name == operator)
        call = bind(way, contract, KERNEL_SETS[operator], inputs, attributes, allocate=allocate)
        call.run()
        return dict(call.buffers)

    return run
