"""Chooses tiles: every candidate through the launcher that tests use, those that spill refused before they run.

A kernel is tuned by its tile, an operator by the constants that its launches share. What is printed is what tiles.py
takes.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from benchmarks.figures import FigureWriter
from benchmarks.gpu_machine import CaseFailure, one_line
from benchmarks.kernel_cases import Case, make_inputs, published_cases
from benchmarks.kernel_compilation import Finding, Job, examine, operator_jobs
from benchmarks.kernel_measure import Settings
from benchmarks.kernel_timing import Step, Timer, Times, alternate
from benchmarks.tables import duration, markdown
from sala_export.ops.common.launch import KernelSet, Launch, Tile
from sala_export.ops.common.triton_run import bind_kernels, served_architecture
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.specs import DType


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Values to try, all with all."""

    constants: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of the tile, or of the operator's launches together."""
    num_warps: Sequence[int] = ()
    num_stages: Sequence[int] = ()


TILES: Mapping[str, Space] = {
    "lightning_carry_kernel": Space(constants={"BLOCK_T": (32, 64)}, num_warps=(4, 8), num_stages=(1, 2, 3)),
    # Both launches count segments by their tile's WANTED_PROGRAMS, which is why neither has others here.
    "lightning_prefill_kernel": Space(
        constants={"BLOCK_T": (32, 64), "ROPE_AHEAD": (0, 1)}, num_warps=(4, 8), num_stages=(1, 2, 3)
    ),
    "lightning_decode_kernel": Space(num_warps=(1, 2, 4, 8), num_stages=(1,)),
    "lightning_output_kernel": Space(
        constants={"BLOCK_C": (512, 1024, 2048, 4096)}, num_warps=(2, 4, 8), num_stages=(1,)
    ),
    "infllmv2_append_kernel": Space(
        constants={"BLOCK_T": (8, 16, 32), "BLOCK_N": (16, 32)}, num_warps=(2, 4, 8), num_stages=(1, 2)
    ),
    "infllmv2_select_kernel": Space(
        constants={"BLOCK_K": (32, 64, 128), "BLOCK_K2": (32, 64, 128)}, num_warps=(4, 8), num_stages=(2, 3, 4)
    ),
    "infllmv2_attend_kernel": Space(
        constants={"BLOCK_T": (4, 8), "BLOCK_N": (32, 64, 128)}, num_warps=(4, 8), num_stages=(2, 3)
    ),
    "infllmv2_gather_union_kernel": Space(
        constants={"BLOCK_N": (32, 64), "VALUE_COLUMNS": (32, 64, 128)}, num_warps=(2, 4), num_stages=(2, 3)
    ),
    "infllmv2_gather_kernel": Space(constants={"BLOCK_N": (16, 32, 64)}, num_warps=(1, 2, 4), num_stages=(1, 2, 3)),
    "infllmv2_decode_normalise_kernel": Space(
        constants={"BLOCK_B": (32, 64, 128), "BLOCK_N": (32, 64, 128)}, num_warps=(2, 4, 8), num_stages=(2, 3, 4)
    ),
    "infllmv2_decode_score_kernel": Space(
        constants={"BLOCK_B": (16, 32, 64)}, num_warps=(2, 4, 8), num_stages=(2, 3, 4)
    ),
    "infllmv2_decode_attend_kernel": Space(
        constants={"BLOCK_N": (16, 32, 64)}, num_warps=(2, 4, 8), num_stages=(2, 3, 4)
    ),
    "infllmv2_decode_merge_kernel": Space(
        constants={"BLOCK_D": (16, 32, 64, 128)}, num_warps=(1, 2, 4, 8), num_stages=(1,)
    ),
}
CONSTANTS: Mapping[str, Space] = {
    "lightning_attention": Space(constants={"LEAST_PART": (256, 512, 1024, 2048, 4096)}),
    # The parts of attention are merged by a tile of 64.
    "infllmv2_attention": Space(constants={"SELECT_SPLITS": (16, 32, 64), "ATTEND_SPLITS": (24, 32, 48, 64)}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One candidate: a kernel set with it in place, and its text in tiles.py."""

    text: str
    kernel_set: KernelSet


def tunable() -> tuple[str, ...]:
    """Names of the kernels and operators that can be tuned."""
    return (*TILES, *CONSTANTS)


def trials(name: str, sm: int) -> list[Trial]:
    """All candidates for a kernel's tile on one architecture, or for an operator's constants."""
    if name in CONSTANTS:
        kernel_set = KERNEL_SETS[name]
        return [
            Trial(text=_constants_text(chosen), kernel_set=replace(kernel_set, constants=kernel_set.constants | chosen))
            for chosen in _choices(CONSTANTS[name].constants)
        ]
    space, kernel_set = TILES[name], next(s for s in KERNEL_SETS.values() if _launches(s, name))
    present = _launches(kernel_set, name)[0].tiles[sm].constexprs
    found = []
    for chosen, warps, stages in itertools.product(_choices(space.constants), space.num_warps, space.num_stages):
        tile = Tile(constexprs={**present, **chosen}, num_warps=warps, num_stages=stages)
        found.append(Trial(text=_tile_text(tile), kernel_set=with_tile(kernel_set, name, sm, tile)))
    return found


def with_tile(kernel_set: KernelSet, kernel: str, sm: int, tile: Tile) -> KernelSet:
    """A kernel set whose launch of a kernel takes another tile on one architecture.

    Of a kernel that serves both sequences only the launch in prefill does: in decode it has a tile of its own.
    """

    def changed(launch: Launch) -> Launch:
        return replace(launch, tiles={**launch.tiles, sm: tile}) if launch.name == kernel else launch

    if _in(kernel_set.prefill, kernel):
        return replace(kernel_set, prefill=tuple(map(changed, kernel_set.prefill)))
    return replace(kernel_set, decode=tuple(map(changed, kernel_set.decode)))


def tuning_cases(name: str) -> list[Case]:
    """The calls that a candidate is timed in."""
    prefill = any(_in(kernel_set.prefill, name) for kernel_set in KERNEL_SETS.values())
    operator = name if name in CONSTANTS else next(n for n, s in KERNEL_SETS.items() if _launches(s, name))
    return [
        case
        for case in published_cases()
        if case.operator == operator
        and case.calls == 1
        and "at once" not in case.name
        and (name in CONSTANTS or case.is_decode != prefill)
    ]


def refusal(found: Finding) -> str | None:
    """Why a candidate is not worth a run; None if it is."""
    if found.problem is None and (found.spill_instructions or found.stack_bytes):
        return f"spills: {found.spill_instructions} instructions, {found.stack_bytes} B of stack"
    return found.problem


def job_of(name: str, trial: Trial, dtype: DType, sm: int, tiles: int | None = None) -> Job:
    """The compilation of a kernel's candidate, as its launch will look for it; architectures as of `operator_jobs`."""
    jobs = operator_jobs(tuning_cases(name)[0], dtype.value, sm, tiles, trial.kernel_set)
    return next(job for job in jobs if job.kernel == name)


def tune(
    name: str,
    cases: Sequence[Case],
    dtype: DType,
    device: torch.device,
    timer: Timer,
    settings: Settings,
    figures: FigureWriter,
) -> str:
    """Try all candidates in each of `cases`; the table, best first, with what was refused below.

    The times of a case are written to `figures` as soon as it ends.
    """
    own = served_architecture(device)
    sm = settings.way.sm or own
    candidates, refused = trials(name, sm), []
    registers: dict[str, int] = {}
    if name in TILES:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            # Triton's cache has them from then on: one by one they would take longer than all that is measured.
            jobs = [job_of(name, trial, dtype, own, sm) for trial in candidates]
            found = list(zip(candidates, pool.map(examine, jobs, itertools.repeat(own)), strict=True))
        refused = [(trial.text, reason) for trial, one in found if (reason := refusal(one))]
        registers = {trial.text: one.registers for trial, one in found}
        candidates = [trial for trial, one in found if refusal(one) is None]
    times: dict[str, dict[str, Times]] = {}
    for case in cases:
        inputs = make_inputs(case, getattr(torch, dtype.value), device)
        sides: dict[str, list[Step]] = {}
        for trial in list(candidates):
            try:
                sides[trial.text] = [_step(name, trial, case, inputs, settings, timer)]
            except CaseFailure as error:
                candidates.remove(trial)
                refused.append((trial.text, one_line(error)))
        timed = alternate(timer, sides, rounds=settings.rounds, budget_seconds=settings.budget_seconds)
        times[case.name] = {text: steps[0] for text, steps in timed.items()}
        for text, found_times in times[case.name].items():
            told = {"seconds": found_times.median, "spread": found_times.spread, "registers": registers.get(text)}
            figures.write(
                "tuning", way=str(settings.way), kernel=name, dtype=dtype.value, candidate=text, case=case.name, **told
            )
    return tuning_table(f"SM{sm}, {dtype.value}", times, registers, refused)


def tuning_table(
    title: str,
    times: Mapping[str, Mapping[str, Times]],
    registers: Mapping[str, int],
    refused: Sequence[tuple[str, str]],
) -> str:
    """Candidates by the sum over all calls of their times relative to the best there."""
    texts = [text for text in next(iter(times.values())) if all(text in of_case for of_case in times.values())]
    best = {case: min(found.median for found in of_case.values()) for case, of_case in times.items()}
    score = {text: sum(times[case][text].median / best[case] for case in times) / len(times) for text in texts}
    lines = [
        (
            f"`{text}`",
            str(registers.get(text, "")),
            f"{score[text]:.3f}",
            *(f"{duration(times[case][text].median)} +- {100 * times[case][text].spread:.0f} %" for case in times),
        )
        for text in sorted(texts, key=score.__getitem__)
    ]
    table = markdown((title, "registers", "relative time", *times), lines)
    return "\n".join([table, *(f"refused: {text}: {reason}" for text, reason in refused)])


def _step(name: str, trial: Trial, case: Case, inputs: list[torch.Tensor], settings: Settings, timer: Timer) -> Step:
    call = bind_kernels(case.contract, trial.kernel_set, inputs, case.attributes, sm=settings.way.sm)
    call.run()
    if name in CONSTANTS:
        return timer.captured(call.run)
    return next(launch.run for launch in call.launches if launch.launch.name == name)


def _choices(values: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def _launches(kernel_set: KernelSet, name: str) -> list[Launch]:
    return [launch for launch in kernel_set.launches if launch.name == name]


def _in(launches: Sequence[Launch], name: str) -> bool:
    return any(launch.name == name for launch in launches)


def _tile_text(tile: Tile) -> str:
    constants = f"constexprs={_constants_text(tile.constexprs)}, " if tile.constexprs else ""
    return f"Tile({constants}num_warps={tile.num_warps}, num_stages={tile.num_stages})"


def _constants_text(constants: Mapping[str, int]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in constants.items()) + "}"
