"""Both mixers on the caches of TensorRT-LLM: the operators of `sala_export.ops`, called for one group after the other.

N rows of a batch, H heads, D head dim, X the activation type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checkpoint.config import Mixer, SalaConfig
from ..model.layers import OPERATORS, Cache
from ..model.mixers import MIXERS, MixerKind
from ..model.signature import CONTEXT_LENGTH, PAST_LENGTH, ROPE_COS_SIN
from .page_layout import PageLayout, SparsePool, gather, scatter
from .step_groups import StepGroup

Run = Callable[[MixerKind, Sequence[Tensor], Cache, Mapping[str, Any]], Tensor]
"""Computes the rows of an operator from its inputs and attributes, and updates the cache among them in place."""


def run_kernels_in_place(kind: MixerKind, inputs: Sequence[Tensor], _: Cache, attributes: Mapping[str, Any]) -> Tensor:
    """Launch the Triton kernels."""
    from ..ops.common.triton_run import run_kernels
    from ..ops.kernel_sets import KERNEL_SETS

    contract = kind.contract
    return run_kernels(contract, KERNEL_SETS[contract.name], inputs, attributes)[kind.rows.name]


def run_reference_in_place(
    kind: MixerKind, inputs: Sequence[Tensor], cache: Cache, attributes: Mapping[str, Any]
) -> Tensor:
    """Compute with the reference."""
    given = OPERATORS[kind.contract.name](*inputs, **attributes)
    if isinstance(given, Tensor):
        return given
    y, *updated = given
    for kept, after in zip(cache, updated, strict=True):
        kept.copy_(after)
    rows: Tensor = y
    return rows


def run_in_place(kind: MixerKind, inputs: Sequence[Tensor], cache: Cache, attributes: Mapping[str, Any]) -> Tensor:
    """Compute with the kernels on a GPU, with the reference on the CPU."""
    run = run_kernels_in_place if inputs[0].device.type == "cuda" else run_reference_in_place
    return run(kind, inputs, cache, attributes)


class MixerSteps:
    """Runs the operator of one kind of layers."""

    def __init__(self, config: SalaConfig, mixer: Mixer, run: Run = run_in_place) -> None:
        self._run = run
        self._kind: MixerKind = MIXERS[mixer]
        self._attributes: Mapping[str, Any] = self._kind.attributes(config)
        self._width = config.num_attention_heads * config.head_dim

    def lightning(
        self, packed: Tensor, groups: Sequence[StepGroup], norms: Mapping[str, Tensor], rope: Tensor, states: Tensor
    ) -> Tensor:
        """Advance the states of a layer by one step.

        Args: packed X [N, 4 H D]; `norms` by the operator's names; rope fp32 [N, D]; states fp32 [slots, H, D, D] of
        any slot stride, updated in place.
        Returns: X [N, H D], ready for `o_proj`.
        """
        y = packed.new_empty(len(packed), self._width)
        for group in groups:
            state = states.index_select(0, group.state_slots)
            if group.begins:
                state.zero_()
            others = {**norms, ROPE_COS_SIN: _rows(rope, group)}
            y[group.rows] = self._rows_of(packed, group, (state,), others)
            states.index_copy_(0, group.state_slots, state)
        return y

    def sparse(self, packed: Tensor, groups: Sequence[StepGroup], pool: SparsePool, layout: PageLayout) -> Tensor:
        """Attend to the pages of a layer, and add the step to them.

        Args: packed X [N, 2 (H + G) D]; `pool`, updated in place.
        Returns: X [N, H D], ready for `o_proj`.
        """
        y = packed.new_empty(len(packed), self._width)
        for group in groups:
            cache = gather(pool, group.slots, layout)
            y[group.rows] = self._rows_of(packed, group, cache, {})
            scatter(pool, group.slots, group.positions, group.windows, cache, layout.page_tokens)
        return y

    def _rows_of(self, packed: Tensor, group: StepGroup, cache: Cache, others: Mapping[str, Tensor]) -> Tensor:
        """Rows X [n T, H D] of the operator, which updates `cache`."""
        lengths = {PAST_LENGTH: group.past_length, CONTEXT_LENGTH: group.context_length}
        inputs = self._kind.inputs(_rows(packed, group), cache, {**lengths, **others})
        return self._run(self._kind, inputs, cache, self._attributes).flatten(0, 1)


def _rows(x: Tensor, group: StepGroup) -> Tensor:
    """The rows of a group, [n, T, ...]."""
    return x[group.rows].view(*group.shape, *x.shape[1:])
