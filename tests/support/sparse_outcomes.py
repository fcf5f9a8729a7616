"""Calls of the InfLLMv2Attention kernels, judged by the reference in float64;
for tests and `benchmarks/kernels.py`.

B batch, T tokens of the chunk, N tokens in the cache after it, G key heads, R query heads per key head, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from sala_export.ops.infllmv2_attention import reference

from .findings import Finding, assert_passed, differing, largest_error
from .oracles import SparseSizes
from .sparse_calls import Cache, feed, int32, projections, windows
from .triton_interpreter import UNWRITTEN, Run, runner

MARGIN = 1e-4
"""Relative margin at the cut above which fp32 must choose as exact arithmetic does."""
FLOOR = 1e-5
"""Error allowed beyond the roundings to X, of the largest value: fp32 sums in another order."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: `tokens` new ones after `past` tokens of each batch row; `context` defaults to their sum."""

    tokens: int
    past: tuple[int, ...]
    sizes: SparseSizes
    context: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    seed: int = 0
    likeness: float = 0.0
    """Share of a random query's variance that 16 neighbours have in common: they then choose many blocks together."""
    ends: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(past + self.tokens for past in self.past))

    @property
    def contexts(self) -> tuple[int, ...]:
        return self.context or self.ends


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A call and what the kernels made of it; caches are those after the call."""

    case: Case
    qkvg: Tensor
    y: Tensor
    cache: Cache
    exact: Cache
    """The caches after the reference, in float64."""
    chosen: Tensor
    """The workspace [B, G, T, chosen blocks]."""


def run_kernels(case: Case, sequences: Tensor | None = None, device: str = "interpreter") -> Outcome:
    """Fill the caches with the reference, then run the chunk with the kernels; `sequences` [B, N, width]."""
    run, place = runner(device)
    return run_case(case, (random_sequences(case) if sequences is None else sequences).to(place), run)


def random_sequences(case: Case) -> Tensor:
    """Projections [B, N, width] of `case.seed` and the seeds after it."""
    rows = [projections(max(case.ends), case.sizes, case.seed + b) for b in range(len(case.past))]
    for row in rows if case.likeness else ():
        queries = row[:, : case.sizes.num_heads * case.sizes.head_dim]
        common = queries[::16].repeat_interleave(16, dim=0)[: len(queries)]
        queries.copy_(math.sqrt(1 - case.likeness) * queries + math.sqrt(case.likeness) * common)
    return torch.stack(rows).to(case.dtype)


def run_case(case: Case, sequences: Tensor, run: Run) -> Outcome:
    """`run_kernels` with whatever runs an operator; the reference computes where `sequences` are."""
    sizes = case.sizes
    capacity = max(case.ends) + 7
    rows = []
    # Dense, and with one query head per key head, whatever the case says: only the caches are of interest.
    caches_only = replace(sizes, num_heads=sizes.num_kv_heads, dense_len=capacity)
    first_key = (sizes.num_heads - sizes.num_kv_heads) * sizes.head_dim
    width = 4 * sizes.num_kv_heads * sizes.head_dim
    for sequence, past in zip(sequences, case.past, strict=True):
        narrow = sequence[:, first_key : first_key + width]
        empty = Cache.empty(1, capacity, sizes, case.dtype, sequences.device)
        rows.append(feed(narrow, [past], caches_only, capacity)[1] if past else empty)
    before = [torch.cat(parts) for parts in zip(*(row.tensors() for row in rows), strict=True)]
    qkvg = torch.stack([s[past:end] for s, past, end in zip(sequences, case.past, case.ends, strict=True)])
    lengths = [int32(values).to(sequences.device) for values in (case.past, case.contexts)]
    exact = [cache.double() for cache in before]
    reference.infllmv2_attention(qkvg.double(), *lengths, *exact, **asdict(sizes))
    result = run("infllmv2_attention", [qkvg, *lengths, *before], asdict(sizes))
    after = [result[f"{name}_cache_out"] for name in ("k", "v", "k1", "k2")]
    named = [dict(zip(("k", "v", "k1", "k2"), caches, strict=True)) for caches in (after, exact)]
    return Outcome(
        case=case, qkvg=qkvg, y=result["y"], cache=Cache(**named[0]), exact=Cache(**named[1]), chosen=result["chosen"]
    )


def heads_of(outcome: Outcome, row: int) -> tuple[Tensor, Tensor]:
    """Queries and gates of a batch row in float64, [G, R, T, D]."""
    sizes = outcome.case.sizes
    x = outcome.qkvg[row].double()
    group = sizes.num_heads // sizes.num_kv_heads
    ends = x[:, : sizes.num_heads * sizes.head_dim], x[:, -sizes.num_heads * sizes.head_dim :]
    q, gate = (part.view(len(x), sizes.num_kv_heads, group, sizes.head_dim).permute(1, 2, 0, 3) for part in ends)
    return q, gate


def cache_findings(outcome: Outcome, row: int) -> list[Finding]:
    """Appended rows are copies, complete windows are means rounded once, and nothing else was written."""
    sizes, end = outcome.case.sizes, outcome.case.ends[row]
    cache, exact = outcome.cache, outcome.exact
    found = []
    for name, ours, theirs in (("k_cache", cache.k, exact.k), ("v_cache", cache.v, exact.v)):
        found.append(differing(name, ours[row, :, :end].double() != theirs[row, :, :end]))
        found.append(differing(f"{name} after the context", ~ours[row, :, end:].isnan()))
    for name, ours, theirs, factor in (("k1_cache", cache.k1, exact.k1, 1), ("k2_cache", cache.k2, exact.k2, 4)):
        count = windows(end, factor * sizes.kernel_size, factor * sizes.kernel_stride)
        limit = torch.finfo(ours.dtype).eps / 2 + FLOOR
        found.append(largest_error(name, ours[row, :, :count], theirs[row, :, :count], limit))
        found.append(differing(f"{name} after the context", ~ours[row, :, count:].isnan()))
    return found


def assert_caches(outcome: Outcome, row: int) -> None:
    assert_passed(cache_findings(outcome, row))


def taken_mask(outcome: Outcome, row: int) -> Tensor:
    """bool [G, T, blocks]: forced ones and those of the workspace, where none is forced, twice, or after -1."""
    case, sizes = outcome.case, outcome.case.sizes
    chosen = outcome.chosen[row].long()
    limit = sizes.topk - 1 - sizes.init_blocks
    assert chosen.shape[-1] == max(limit, 1)
    blocks = -(-case.ends[row] // sizes.block_size)
    block = torch.arange(blocks, device=chosen.device)
    own = torch.arange(case.past[row], case.ends[row], device=chosen.device)[:, None] // sizes.block_size
    forced = ((block < sizes.init_blocks) | (block >= own - sizes.window_size // sizes.block_size)) & (block <= own)
    forced = forced.expand(sizes.num_kv_heads, -1, -1)
    if limit == 0:
        return forced
    # Before they are indices: one out of bounds would take the context of a GPU down.
    assert ((chosen >= -1) & (chosen < blocks)).all()
    assert ((chosen[..., 1:] == -1) | (chosen[..., :-1] >= 0)).all(), "-1 before a block"
    counts = chosen.new_zeros(*chosen.shape[:-1], blocks + 1)
    counts.scatter_add_(-1, chosen + 1, torch.ones_like(chosen))
    assert (counts[..., 1:] + forced).max() == 1
    return (counts[..., 1:] == 1) | forced


def blocks_of(outcome: Outcome) -> list[list[list[int]]]:
    """Taken blocks of the first batch row, by key head and token."""
    return [[token.nonzero().flatten().tolist() for token in head] for head in taken_mask(outcome, 0)]


@dataclass(frozen=True, kw_only=True)
class SelectionJudgement:
    """What the kernels chose beside what the reference does with the kernels' own k1 and k2."""

    is_tie: Tensor
    """bool [G, T]: equal scores at the cut."""
    is_sure: Tensor
    """bool [G, T]: rounding cannot change what is chosen."""
    is_same: Tensor
    """bool [G, T]"""


def judge_selection(outcome: Outcome, row: int) -> SelectionJudgement:
    """Compare the selection alone: the reference gets the kernels' k1 and k2."""
    case, sizes = outcome.case, outcome.case.sizes
    names = ("scale", "kernel_size", "kernel_stride", "block_size", "topk", "window_size", "init_blocks")
    q, _ = heads_of(outcome, row)
    positions = torch.arange(case.past[row], case.ends[row], device=q.device)
    k1, k2 = outcome.cache.k1[row].double(), outcome.cache.k2[row].double()
    selection = reference.select_blocks(q, k1, k2, positions, **{name: asdict(sizes)[name] for name in names})
    last_taken = selection.score.masked_fill(~selection.taken, math.inf).amin(-1)
    first_refused = selection.score.masked_fill(selection.taken, -math.inf).amax(-1)
    is_tie = last_taken == first_refused
    is_sure = is_tie | ((last_taken - first_refused) > MARGIN * last_taken) | (last_taken == math.inf)
    is_same = (taken_mask(outcome, row) == selection.taken).all(-1)
    return SelectionJudgement(is_tie=is_tie, is_sure=is_sure, is_same=is_same)


def selection_findings(outcome: Outcome, row: int) -> list[Finding]:
    """How many of the rows that rounding cannot change chose other blocks."""
    judged = judge_selection(outcome, row)
    return [differing("chosen", judged.is_sure & ~judged.is_same)]


def assert_selection(outcome: Outcome, row: int) -> int:
    """The blocks are the reference's wherever rounding cannot change them; returns how many rows tie at the cut."""
    judged = judge_selection(outcome, row)
    assert judged.is_sure.double().mean() >= 0.95, "these inputs do not test the selection"
    assert judged.is_same[judged.is_sure].all()
    return int(judged.is_tie.sum())


def output_findings(outcome: Outcome, row: int) -> list[Finding]:
    """y is the gated attention over the blocks that the kernels took, to one rounding of the weights and one of y."""
    case, sizes, end = outcome.case, outcome.case.sizes, outcome.case.ends[row]
    q, gate = heads_of(outcome, row)
    positions = torch.arange(case.past[row], end, device=q.device)
    allowed = (torch.arange(end, device=q.device) <= positions[:, None])[None]
    found = []
    if case.contexts[row] >= sizes.dense_len:
        allowed = allowed & taken_mask(outcome, row).repeat_interleave(sizes.block_size, dim=-1)[..., :end]
    else:
        found.append(differing("chosen in dense mode", outcome.chosen[row] != UNWRITTEN))
    k, v = (cache[row, :, None, :end].double() for cache in (outcome.cache.k, outcome.cache.v))
    logits = (sizes.scale * q @ k.transpose(-1, -2)).masked_fill(~allowed[:, None], -math.inf)
    o = (logits.softmax(-1) @ v) * gate.sigmoid()
    exact = o.permute(2, 0, 1, 3).reshape(case.tokens, -1)
    limit = 2 * torch.finfo(outcome.y.dtype).eps + FLOOR
    return [*found, largest_error("y", outcome.y[row], exact, limit)]


def assert_output(outcome: Outcome, row: int) -> None:
    assert_passed(output_findings(outcome, row))
