"""`benchmarks/block_overlap.py` against sets counted one by one, and from a model to its figures."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
import torch
from support.overlap_flow import measure_small
from support.small_models import write_small_checkpoint
from support.triton_interpreter import call_interpreting

from benchmarks import block_overlap
from benchmarks.block_overlap import NEIGHBOURS, PARTS, LayerCounts, Overlap, distinct_blocks
from benchmarks.figures import read_figures
from sala_export.checkpoint.config import SparseConfig
from sala_export.checkpoint.presets import PRESETS
from sala_export.errors import RequestError

SMALL = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 8,
    "topk": 5,
    "window_size": 8,
    "init_blocks": 1,
    "dense_len": 32,
}
"""Of the blocks between the first and the last two, a row chooses three."""
SPARSE = SparseConfig(**SMALL)
SLOTS = 3
Steps = Sequence[tuple[int, list[list[list[int]]]]]


def counted_one_by_one(steps: Steps, context: int) -> dict[tuple[str, int], tuple[int, float, float, float]]:
    """By part and size of group: groups, blocks of a group, blocks of a token, share of the left neighbour; by sets."""
    unions, sizes, shares = defaultdict(list), defaultdict(list), defaultdict(list)
    for past, chosen in steps:
        for rows in chosen:
            taken = [{block for block in row if block != -1} for row in rows]
            is_contested = []
            for token in range(past, past + len(rows)):
                own = token // SPARSE.block_size
                candidates = [block for block in range(SPARSE.init_blocks, own) if block < own - 1]
                is_contested.append(len(candidates) > SLOTS)
            for t, (blocks, counts) in enumerate(zip(taken, is_contested, strict=True)):
                for part in ("whole", f"{(past + t) * PARTS // context + 1}/{PARTS}"):
                    if counts:
                        sizes[part].append(len(blocks))
                    if t and counts and is_contested[t - 1]:
                        shares[part].append(len(blocks & taken[t - 1]) / len(blocks))
                    for n in NEIGHBOURS:
                        if t % n == 0 and t + n <= len(rows) and all(is_contested[t : t + n]):
                            unions[part, n].append(len(set.union(*taken[t : t + n])))
    return {
        (part, n): (len(found), fmean(found), fmean(sizes[part]), fmean(shares[part]))
        for (part, n), found in unions.items()
    }


def require_equal(overlaps: Sequence[Overlap], steps: Steps, context: int) -> None:
    expected = counted_one_by_one(steps, context)
    assert {(overlap.part, overlap.neighbours) for overlap in overlaps} == set(expected)
    for overlap in overlaps:
        found = (overlap.groups, overlap.union_blocks, overlap.chosen_blocks, overlap.left_share)
        assert found == pytest.approx(expected[overlap.part, overlap.neighbours]), overlap


def random_choices(past: int, tokens: int, heads: int, generator: torch.Generator) -> torch.Tensor:
    """int32 [1, heads, tokens, SLOTS], of as many blocks as a token of that place has, in any order."""
    chosen = torch.full((1, heads, tokens, SLOTS), -1, dtype=torch.int32)
    for head, token in itertools.product(range(heads), range(tokens)):
        candidates = max(0, (past + token) // SPARSE.block_size - 1 - SPARSE.init_blocks)
        drawn = torch.randperm(candidates, generator=generator)[:SLOTS] + SPARSE.init_blocks
        chosen[0, head, token, : len(drawn)] = drawn.to(torch.int32)
    return chosen


@pytest.mark.parametrize("cuts", [(0, 120), (0, 1, 50, 67, 119, 120), (48, 49, 97)])
def test_means_are_those_of_sets_counted_one_by_one(cuts: tuple[int, ...]) -> None:
    context, generator = 120, torch.Generator().manual_seed(0)
    counts, steps = LayerCounts(SPARSE, context, torch.device("cpu")), []
    for start, end in itertools.pairwise(cuts):
        chosen = random_choices(start, end - start, 2, generator)
        counts.add(chosen, torch.tensor([start], dtype=torch.int32))
        steps.append((start, chosen[0].tolist()))
    overlaps = counts.overlaps(0)
    require_equal(overlaps, steps, context)
    assert {overlap.part for overlap in overlaps} >= {"4/4", "whole"}
    assert "1/4" not in {overlap.part for overlap in overlaps}, "nothing is contested there"


def test_distinct_blocks_of_neighbours_leave_the_last_rows_out() -> None:
    chosen = torch.tensor([[[4, 2], [2, -1], [-1, -1], [7, 2], [9, 9]]], dtype=torch.int32)
    assert distinct_blocks(chosen, 2).tolist() == [[2, 2]]
    assert distinct_blocks(chosen, 5).tolist() == [[4]]
    assert distinct_blocks(chosen, 8).shape == (1, 0)


def test_benchmark_of_a_small_model_counts_what_its_kernels_chose(tmp_path: Path) -> None:
    mixers = ("minicpm4", "lightning-attn", "minicpm4")
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", mixers, sparse_config=SMALL, head_dim=32)
    overlaps, steps = call_interpreting(partial(measure_small, checkpoint, 120, 80))
    by_layer = {0: steps[0::2], 2: steps[1::2]}
    assert [past for past, _ in by_layer[2]] == [0, 80]
    assert {overlap.layer for overlap in overlaps} == set(by_layer)
    for layer, of_layer in by_layer.items():
        found = [overlap for overlap in overlaps if overlap.layer == layer]
        require_equal(found, of_layer, 120)
        last = [overlap for overlap in found if overlap.part == "4/4"]
        # The candidates were counted as the kernel counts them: every list is full.
        assert all(overlap.chosen_blocks == SLOTS for overlap in last)
        assert all(SLOTS <= overlap.union_blocks <= SLOTS * overlap.neighbours for overlap in last)
    lines = block_overlap.table(overlaps).splitlines()
    # In the first quarter nothing is contested.
    assert [line.split()[1] for line in lines[1:]] == 2 * ["2/4", "3/4", "4/4", "whole"]
    assert all(overlap.part == "whole" for overlap in overlaps[-len(NEIGHBOURS) :])


def test_context_without_a_choice_is_refused() -> None:
    config = replace(PRESETS["tiny"].config, sparse_config=SPARSE)
    block_overlap.require_contested(config, 49)
    with pytest.raises(RequestError, match="no token has to choose among blocks before 49 tokens"):
        block_overlap.require_contested(config, 48)


def test_figures_and_table_come_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = [
        Overlap(layer=1, part="4/4", neighbours=n, groups=9, union_blocks=6.0 + n, chosen_blocks=6.0, left_share=0.75)
        for n in NEIGHBOURS
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(block_overlap, "measure", lambda *_: found)
    figures = tmp_path / "figures.jsonl"
    assert block_overlap.main(["--model", "both", "--context", "8K", "--figures", str(figures)]) == 0
    told = read_figures(figures)[1:]
    assert [(line["kind"], line["model"]) for line in told] == 4 * [("overlap", "random")] + 4 * [
        ("overlap", "passkey")
    ]
    assert {line["context"] for line in told} == {8192}
    assert [(line["layer"], line["neighbours"], line["union_blocks"]) for line in told][1] == (1, 4, 10.0)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["1", "4/4", "6.0", "75%", "8.0", "10.0", "14.0", "22.0"]


def test_without_a_gpu_it_ends_with_one_line_and_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    figures = tmp_path / "figures.jsonl"
    assert block_overlap.main(["--figures", str(figures), "--step", "H"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no CUDA device here")
    assert printed.err.count("\n") == 1
    (problem,) = read_figures(figures)[1:]
    assert (problem["kind"], problem["step"], problem["where"]) == ("problem", "H", "benchmarks.block_overlap")
