"""Prefill's selection with the tiles of each architecture: chosen blocks, union lists, scratch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import pytest
import torch
from support.oracles import SparseSizes
from support.selection_calls import expected_unions, repeated_selections, selected
from support.sparse_calls import int32, projections
from support.sparse_outcomes import Case, assert_selection, random_sequences
from support.triton_interpreter import UNWRITTEN, call_interpreting

from sala_export.ops.infllmv2_attention import tiles

SIZES = SparseSizes(
    num_heads=12,
    num_kv_heads=2,
    head_dim=32,
    scale=1 / math.sqrt(32),
    kernel_size=8,
    kernel_stride=4,
    block_size=16,
    topk=9,
    window_size=32,
    init_blocks=1,
    dense_len=-1,
)

CASES = {
    "no_initial_block": (90, Case(tokens=21, past=(1100, 37), sizes=replace(SIZES, init_blocks=0))),
    "some_are_uncontested": (90, Case(tokens=40, past=(90,), sizes=replace(SIZES, init_blocks=3))),
    "three_initial_blocks": (86, Case(tokens=13, past=(770,), sizes=replace(SIZES, init_blocks=3, topk=20))),
    "two_keys_in_a_block": (86, Case(tokens=7, past=(500, 260), sizes=replace(SIZES, block_size=8, window_size=0))),
    "one_key_in_a_block": (120, Case(tokens=9, past=(300,), sizes=replace(SIZES, block_size=4, window_size=4))),
    "a_dense_row_between": (
        120,
        Case(tokens=9, past=(400, 100, 410), context=(409, 109, 419), sizes=replace(SIZES, dense_len=300)),
    ),
}


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        *((name, bounds) for name in CASES for bounds in (None, {})),
        # Room for so few survivors that tiles take the exact pass after all.
        *((name, {"SURVIVOR_SLOTS": 32}) for name in ("three_initial_blocks", "two_keys_in_a_block")),
    ],
)
def test_chosen_blocks_ascend_and_unions_hold_them(name: str, bounds: Mapping[str, int] | None) -> None:
    sm, case = CASES[name]
    outcome, lists = selected(case, random_sequences(case), sm, bounds)
    union = tiles.UNION_TOKENS[sm]
    for row, context in enumerate(case.contexts):
        if context < case.sizes.dense_len:
            for written in ("chosen", "union_blocks", "union_size", "survivor_count"):
                assert (lists[written][row] == UNWRITTEN).all()
            continue
        assert_selection(outcome, row)
        chosen = lists["chosen"][row]
        assert ((chosen[..., 1:] > chosen[..., :-1]) | (chosen[..., 1:] == -1)).all()
        for head in range(case.sizes.num_kv_heads):
            for first, entries in expected_unions(chosen[head], union).items():
                assert lists["union_size"][row, head, first] == len(entries)
                assert lists["union_blocks"][row, head, first:].flatten()[: len(entries)].tolist() == entries


def test_no_block_to_choose_leaves_empty_unions() -> None:
    case = Case(tokens=5, past=(300,), sizes=replace(SIZES, topk=2))
    _, lists = selected(case, random_sequences(case), 120)
    assert (lists["union_size"][0, :, :: tiles.UNION_TOKENS[120]] == 0).all()


def test_programs_take_free_scratch_and_leave_it_free() -> None:
    tokens, past = 20, 400
    sequence = projections(past + tokens, SIZES, seed=4)
    generator = torch.Generator().manual_seed(4)
    rows = (past + tokens, past + tokens, 104, 25)
    caches = [torch.randn(1, 2, count, 32, generator=generator) for count in rows]
    inputs = [sequence[None, past:], int32([past]), int32([past + tokens]), *caches]
    # Six tiles, and as many slots: each its own, or one for all.
    runs = [run for taken in (0, 5) for run in call_interpreting(repeated_selections, inputs, asdict(SIZES), taken)]
    first = runs[0][0]
    assert (first[0] >= 0).all()
    assert [slots for _, slots in runs] == [[], [], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    for lists, _ in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(lists, first, strict=True))
