"""Kernels on the CPU, in Triton's interpreter, in a process of their own; and on a GPU, where there is one.

Triton decides when it is imported whether kernels are interpreted or compiled, for the whole process; other tests of
this session compile.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

Returned = TypeVar("Returned")

Run = Callable[[str, Sequence[Tensor], Mapping[str, int | float]], dict[str, Tensor]]
"""Called with an operator's name, inputs and attributes; gives outputs and workspaces by name, on their device."""

UNWRITTEN = -(2**31)
"""Content of int32 buffers before a kernel writes to them; floating ones hold NaN."""


def run_interpreted(
    operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]
) -> dict[str, Tensor]:
    """Outputs and workspaces of an operator's kernels, by name; `inputs` are left as they are.

    Outputs and workspaces are poisoned before the kernels run.
    """
    call = _packed((operator, tuple(inputs), dict(attributes)))
    returned: dict[str, Tensor] = _unpacked(_worker().submit(_run, call).result())
    return returned


DEVICES = ["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)]
"""For tests that run on both: what `runner` takes."""


def runner(device: str) -> tuple[Run, str]:
    """What runs an operator on one of `DEVICES`, and torch's name of where its inputs have to be."""
    return (run_interpreted, "cpu") if device == "interpreter" else (run_poisoned, device)


def call_interpreting(function: Callable[..., Returned], *arguments: object) -> Returned:
    """Call a function of some module where Triton interprets; arguments and result are pickled."""
    return _worker().submit(function, *arguments).result()


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_interpret)


def _interpret() -> None:
    if "triton" in sys.modules:
        raise RuntimeError("Triton was imported before it could be told to interpret")
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _run(call: bytes) -> bytes:
    return _packed(run_poisoned(*_unpacked(call)))


def _packed(value: object) -> bytes:
    """Bytes of something with tensors. Python's pickle of torch 2.13 reads no tensor of float8 back."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def run_poisoned(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
    """Outputs and workspaces of an operator's kernels by name, poisoned before they run.

    **Inputs that an output updates are overwritten.**
    """
    from sala_export.ops.common.triton_run import run_kernels
    from sala_export.ops.kernel_sets import KERNEL_SETS
    from sala_export.ops.registry import CONTRACTS

    contract = next(c for c in CONTRACTS if c.name == operator)
    return run_kernels(contract, KERNEL_SETS[operator], inputs, attributes, allocate=poisoned)


def poisoned(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = float("nan") if dtype.is_floating_point else max(UNWRITTEN, torch.iinfo(dtype).min)
    return torch.full(shape, value, dtype=dtype, device=device)
