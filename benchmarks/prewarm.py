"""Fills Triton's cache with all that the benchmarks launch, one process for each core.

    python -m benchmarks.prewarm [--processes 16] [--sm 90]

Triton compiles a kernel when it is first launched, one after the other. Here the launches are compiled side by side
before anything is measured: ours for the GPU present, or without one for `--sm`, and on a GPU also the candidates that
flash-linear-attention tries.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from triton.runtime.autotuner import Autotuner

from benchmarks.figures import add_figure_options
from benchmarks.gpu_machine import NO_GPU, CaseFailure, one_line
from benchmarks.kernel_cases import LIGHTNING, make_inputs, published_cases
from benchmarks.kernel_compilation import Job, compile_one, prewarm_jobs
from benchmarks.kernel_peers import make_peer
from benchmarks.run_header import start_figures
from sala_export.ops.common.targets import ARCHITECTURES
from sala_export.ops.common.triton_run import served_architecture


def compile_job(job: Job, sm: int) -> str | None:
    """Compile one of our launches; returns why that failed, or None."""
    try:
        compile_one(job, sm)
    except CaseFailure as error:
        return f"{job.title}: {one_line(error)}"
    return None


@contextmanager
def share_of_candidates(share: int, shares: int) -> Iterator[None]:
    """Autotuned kernels compile every `shares`-th of their candidates, from number `share` on, and run none."""

    def run(self: Autotuner, *arguments: Any, **options: Any) -> None:
        options.pop("warmup", None)
        for config in self.configs[share::shares]:
            self.fn.warmup(*arguments, **options, **config.all_kwargs())

    with mock.patch.object(Autotuner, "run", run):
        yield


def compile_peers(share: int, shares: int) -> str | None:
    """Compile a share of the candidates of the Lightning operator's peers; returns why that failed, or None."""
    calls = [case for case in published_cases(quick=True) if case.operator == LIGHTNING and case.calls == 1]
    try:
        for case in calls:
            with share_of_candidates(share, shares):
                make_peer(case, make_inputs(case, torch.bfloat16, torch.device("cuda")))()
    except (ImportError, *CaseFailure) as error:
        return f"flash-linear-attention: {one_line(error)}"
    return None


def prewarm(sm: int, processes: int, with_peers: bool) -> Iterator[str | None]:
    """What went wrong with each compilation, or None, as they end."""
    context = multiprocessing.get_context("spawn")
    # Apart: a process that compiles for a GPU by its name can launch nothing.
    with ProcessPoolExecutor(processes, context) as ours, ProcessPoolExecutor(processes, context) as peers:
        tasks: list[Future[str | None]] = [ours.submit(compile_job, job, sm) for job in prewarm_jobs(sm)]
        if with_peers:
            tasks += [peers.submit(compile_peers, share, processes) for share in range(processes)]
        for task in as_completed(tasks):
            error = task.exception()  # a process that died, or what no compilation should raise
            yield one_line(error) if error else task.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if something does not compile or it is not known for which GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prewarm", description=__doc__.split("\n")[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--processes", type=int, default=cores, help="compilations at a time (default: one for each core)"
    )
    parser.add_argument(
        "--sm", type=int, choices=sorted(ARCHITECTURES), help="architecture to compile for (default: the GPU's)"
    )
    add_figure_options(parser)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    on_gpu = torch.cuda.is_available()
    if options.sm is None and not on_gpu:
        print(f"error: {NO_GPU}; --sm 90 compiles for one that is elsewhere", file=sys.stderr)
        return 2
    figures = start_figures(options)
    start, count, failed = time.monotonic(), 0, 0
    sm = options.sm or served_architecture(torch.device("cuda"))
    for problem in prewarm(sm, options.processes, with_peers=on_gpu):
        count += 1
        if problem is not None:
            failed += 1
            print(problem, file=sys.stderr, flush=True)
            figures.write("problem", where="compile ahead", message=problem)
    print(f"{count} compilations for SM{sm} in {time.monotonic() - start:.0f} s, {failed} failed")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
