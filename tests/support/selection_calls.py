"""Prefill's selection alone: append and select of a call, with the tiles of any architecture, interpreted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from benchmarks.block_bounds import bounded_from
from sala_export.ops.common.launch import KernelSet
from sala_export.ops.common.triton_run import bind_kernels
from sala_export.ops.infllmv2_attention.schema import CONTRACT
from sala_export.ops.infllmv2_attention.triton_kernel import KERNELS

from .sparse_outcomes import Case, Outcome, run_case
from .triton_interpreter import Run, call_interpreting, poisoned

SELECTION = ("infllmv2_append_kernel", "infllmv2_quantize_keys_kernel", "infllmv2_select_kernel")


def selection_on(sm: int, bounds: Mapping[str, int] | None = None) -> Run:
    """What runs append and select of InfLLMv2Attention with the tiles of `sm`; y stays poisoned.

    On the CPU they are interpreted. With `bounds` tiles of any context take bounds, and `bounds` has other constants of
    the kernels than are shipped, by name.
    """

    def run(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
        assert operator == CONTRACT.name
        call = (list(inputs), dict(attributes), sm, bounds)
        return _select(*call) if inputs[0].is_cuda else call_interpreting(_select, *call)

    return run


def selected(
    case: Case, sequences: Tensor, sm: int, bounds: Mapping[str, int] | None = None
) -> tuple[Outcome, dict[str, Tensor]]:
    """A call's selection and all buffers that it wrote; `sm` and `bounds` as `selection_on`."""
    buffers: dict[str, Tensor] = {}

    def run(operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]) -> dict[str, Tensor]:
        buffers.update(selection_on(sm, bounds)(operator, inputs, attributes))
        return buffers

    return run_case(case, sequences, run), buffers


def bounding_kernels(constants: Mapping[str, int]) -> KernelSet:
    """The kernels, whose tiles take bounds in any context unless BOUNDED_BLOCKS is given, with other constants."""
    others = {name: value for name, value in constants.items() if name != "BOUNDED_BLOCKS"}
    kernels = bounded_from(constants.get("BOUNDED_BLOCKS", 1))
    return replace(kernels, constants={**kernels.constants, **others})


def _select(
    inputs: list[Tensor], attributes: dict[str, int | float], sm: int, bounds: Mapping[str, int] | None
) -> dict[str, Tensor]:
    # Between processes torch shares the memory of tensors.
    inputs = [x.clone() for x in inputs]
    kernels = KERNELS if bounds is None else bounding_kernels(bounds)
    call = bind_kernels(CONTRACT, kernels, inputs, attributes, allocate=poisoned, sm=sm)
    for launch in call.launches:
        if launch.launch.name in SELECTION:
            launch.run()
    return dict(call.buffers)


def repeated_selections(
    inputs: list[Tensor], attributes: dict[str, int | float], taken: int
) -> list[tuple[list[Tensor], list[int]]]:
    """Select twice with the first `taken` slots of scratch in use: the lists written, and the slots in use after it."""
    call = bind_kernels(CONTRACT, KERNELS, [x.clone() for x in inputs], attributes, allocate=poisoned)
    append, select = (launch for launch in call.launches if launch.launch.name in SELECTION)
    append.run()
    slots: Tensor = select.arguments["select_slots_ptr"]
    slots[:taken] = 1
    found = []
    for _ in range(2):
        lists = [call.buffers[name] for name in ("chosen", "union_blocks", "union_size")]
        for x in (*lists, call.buffers["block_scores"], call.buffers["survivors"]):
            x.copy_(poisoned(x.shape, dtype=x.dtype, device=x.device))
        select.run()
        found.append(([x.clone() for x in lists], slots.nonzero().flatten().tolist()))
    return found


def expected_unions(chosen: Tensor, union_tokens: int) -> dict[int, list[int]]:
    """Entries block << union_tokens | mask of each tile of a head, by its first row, from lists [rows, limit]."""
    found = {}
    for first in range(0, len(chosen), union_tokens):
        tokens = [{b for b in row if b >= 0} for row in chosen[first : first + union_tokens].tolist()]
        found[first] = [
            (block << union_tokens) | sum((block in token) << j for j, token in enumerate(tokens))
            for block in sorted(set().union(*tokens))
        ]
    return found
