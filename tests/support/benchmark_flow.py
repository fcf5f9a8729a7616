"""`benchmarks/kernels.py` from inputs to rows on small sizes, with a timer that counts instead of timing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from benchmarks import kernel_measure, kernel_timing
from benchmarks.figures import FigureWriter
from benchmarks.gpu_machine import rates_of
from benchmarks.kernel_cases import LIGHTNING, LIGHTNING_SIZES, SPARSE, SPARSE_SIZES, Case
from benchmarks.kernel_measure import Row, Settings
from benchmarks.kernel_timing import Step
from benchmarks.kernel_ways import Way
from benchmarks.kernels import measure_all
from sala_export.ops.common.contract import Contract
from sala_export.ops.common.triton_run import BoundCall
from sala_export.specs import DType

LIGHTNING_SMALL = {**LIGHTNING_SIZES, "num_heads": 1, "head_dim": 32}
SPARSE_SMALL = {
    **SPARSE_SIZES,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "topk": 2,
    "window_size": 64,
    "dense_len": 300,
}
SMALL_CASES = (
    Case(name="chunk", operator=LIGHTNING, tokens=20, attributes=LIGHTNING_SMALL),
    Case(name="two chunks", operator=LIGHTNING, tokens=20, calls=2, attributes=LIGHTNING_SMALL),
    Case(name="token", operator=LIGHTNING, tokens=1, attributes=LIGHTNING_SMALL),
    Case(name="sparse chunk", operator=SPARSE, tokens=9, past_length=400, attributes=SPARSE_SMALL),
    Case(name="sparse token", operator=SPARSE, tokens=1, past_length=400, attributes=SPARSE_SMALL),
)


class CountingTimer:
    """Runs every step the first time, and says that it took one second every time."""

    def __init__(self) -> None:
        self.steps = 0
        self._known: list[Step] = []

    def run(self, steps: Sequence[Step]) -> list[float]:
        for step in steps:
            if not any(known is step for known in self._known):
                self._known.append(step)
                step()
        self.steps += len(steps)
        return [1.0] * len(steps)

    def captured(self, step: Step) -> Step:
        return step


def settings(rounds: int = 3) -> Settings:
    return Settings(rates=rates_of("h100"), rounds=rounds, budget_seconds=1.0)


def run_small_flow() -> tuple[list[Row], int]:
    """Rows of `SMALL_CASES`, and how many steps the timer ran; peers, which need a GPU, do nothing. One warm-up."""
    timer = CountingTimer()
    no_peer = mock.patch.object(kernel_measure, "make_peer", return_value=lambda: None)
    with no_peer, mock.patch.object(kernel_timing, "WARM_UPS", 1):
        rows, has_failed = measure_all(small_calls(), torch.device("cpu"), timer, settings(), FigureWriter(None))
    assert not has_failed
    return rows, timer.steps


def measure_with_faults(path: Path) -> tuple[list[Row], bool]:
    """Two calls, written to `path`: the first fails when it runs, the second has no peer package."""
    bind = kernel_measure.bind

    def failing(way: Way, contract: Contract, *arguments: object) -> BoundCall:
        if contract.name == SPARSE:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return bind(way, contract, *arguments)  # type: ignore[arg-type]

    calls = [(SMALL_CASES[4], DType.FLOAT16), (SMALL_CASES[2], DType.FLOAT16)]
    no_package = mock.patch.object(
        kernel_measure, "make_peer", side_effect=ModuleNotFoundError("No module named 'fla'")
    )
    with no_package, mock.patch.object(kernel_measure, "bind", failing):
        return measure_all(calls, torch.device("cpu"), CountingTimer(), settings(), FigureWriter(path, "E"))


def small_calls() -> list[tuple[Case, DType]]:
    return [(case, DType.FLOAT16) for case in SMALL_CASES]


def tune_small(path: Path) -> str:
    """The table of a tuned constant, over calls that take a moment in the interpreter."""
    from benchmarks.kernel_tuning import tune

    cases = [replace(SMALL_CASES[0], name="Lightning, chunk of 20")]
    figures = FigureWriter(path)
    return tune("lightning_attention", cases, DType.FLOAT16, torch.device("cpu"), CountingTimer(), settings(), figures)


def measure_published_names(path: Path) -> None:
    """Figures of small calls under the names of published ones, and of a tuned constant; peers do nothing."""
    names = ("Lightning, chunk of 8K", "Lightning, one token", "InfLLM-v2, one token after 32K")
    cases = (SMALL_CASES[0], SMALL_CASES[2], SMALL_CASES[4])
    calls = [(replace(case, name=name), DType.FLOAT16) for name, case in zip(names, cases, strict=True)]
    with mock.patch.object(kernel_measure, "make_peer", return_value=lambda: None):
        _, has_failed = measure_all(calls, torch.device("cpu"), CountingTimer(), settings(), FigureWriter(path, "E"))
    assert not has_failed
    tune_small(path)
