"""Calls of the LightningAttention kernels, judged by the reference in float64;
for tests and `benchmarks/kernels.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sala_export.errors import UnsupportedError
from sala_export.model.rope import inv_freq_tensor, rope_cos_sin
from sala_export.ops.lightning_attention.reference import lightning_attention

from .findings import Finding, assert_passed, largest_error
from .triton_interpreter import Run, call_interpreting, poisoned, runner

BATCH = 2
HEADS = 4
FLOOR = 1e-6
"""Error allowed beyond twice that of the reference in the same type: sums in another order.

Twice, because beside the reference's roundings to the 16-bit type the kernels round the operands of two products to it
(README.md of the operator): as many independent roundings of the same size again, and a small one of the stored output.
"""


def attributes(head_dim: int, heads: int = HEADS, eps: float = 1e-6) -> dict[str, int | float]:
    return {"num_heads": heads, "head_dim": head_dim, "eps": eps, "scale": head_dim**-0.5}


def random_inputs(tokens: int, head_dim: int, *, batch: int = BATCH, heads: int = HEADS, seed: int = 0) -> list[Tensor]:
    """fp32 inputs whose rows are at different positions, one near 70,000, with the state of a long past."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels = heads * head_dim
    positions = torch.tensor([[70000], [5], [1234]])[:batch] + torch.arange(tokens)
    return [
        normal(batch, tokens, 4 * channels),
        *(1 + 0.3 * normal(width) for width in (head_dim, head_dim, channels)),
        rope_cos_sin(positions, inv_freq_tensor(10000.0, head_dim)),
        3 * normal(batch, heads, head_dim, head_dim),
    ]


def in_type(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The four activations in `dtype`."""
    return [x.to(dtype) for x in inputs[:4]] + inputs[4:]


def findings(inputs: list[Tensor], attrs: dict[str, int | float], run: Run, allowance: float = 0.0) -> list[Finding]:
    """Both outputs of `run` beside the reference, which computes on the device of the inputs."""
    exact = lightning_attention(*(x.double() for x in inputs), **attrs)
    same_type = lightning_attention(*inputs, **attrs)
    result = run("lightning_attention", inputs, attrs)
    found = []
    for name, exact_value, peer in zip(("y", "state_out"), exact, same_type, strict=True):
        assert result[name].dtype == peer.dtype
        limit = 2 * largest_error(name, peer, exact_value, 0.0).error + FLOOR + allowance
        found.append(largest_error(name, result[name], exact_value, limit))
    return found


def check_against_reference(
    inputs: list[Tensor], attrs: dict[str, int | float], device: str = "interpreter", allowance: float = 0.0
) -> None:
    """On a GPU that has no room for the tiles the library has to say so."""
    run, place = runner(device)
    on_device = [x.to(place) for x in inputs]
    if device == "cuda" and _has_no_room(inputs[0].dtype, attrs):
        with pytest.raises(UnsupportedError, match="choose bf16 or fp16"):
            run("lightning_attention", on_device, attrs)
        return
    assert_passed(findings(on_device, attrs, run, allowance))


def cut_finely(sm: int) -> Run:
    """An interpreting run with the tiles of an architecture: up to 3 segments, of up to two parts each."""
    constants = {"LEAST_SEGMENT": 128, "MOST_SEGMENTS": 3, "LEAST_PART": 128}
    return functools.partial(call_interpreting, _run_cut, sm, constants)


def _run_cut(
    sm: int, constants: Mapping[str, int], operator: str, inputs: Sequence[Tensor], attrs: Mapping[str, int | float]
) -> dict[str, Tensor]:
    from sala_export.ops.common.triton_run import run_kernels
    from sala_export.ops.kernel_sets import KERNEL_SETS
    from sala_export.ops.registry import CONTRACTS

    contract = next(c for c in CONTRACTS if c.name == operator)
    kernel_set = replace(KERNEL_SETS[operator], constants={**KERNEL_SETS[operator].constants, **constants})
    return run_kernels(contract, kernel_set, inputs, attrs, allocate=poisoned, sm=sm)


def _has_no_room(dtype: torch.dtype, attrs: dict[str, int | float]) -> bool:
    """Whether float32 tiles exceed the shared memory: those of RTX cards at head_dim 128."""
    return dtype == torch.float32 and attrs["head_dim"] > 64 and torch.cuda.get_device_capability()[0] != 9
