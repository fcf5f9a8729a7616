"""Compiling ahead: what is compiled, that candidates are shared out without one being left out, and faults by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from support.triton_compiler import call_afresh
from triton.runtime.driver import driver

from benchmarks import prewarm
from benchmarks.figures import read_figures
from benchmarks.kernel_compilation import Job, NamedGpu, prewarm_jobs

CONFIGS = [triton.Config({"BLOCK": block}, num_warps=warps) for block in (32, 64, 128) for warps in (1, 2)][:5]


@triton.heuristics({"IS_EVEN": lambda args: args["n"] % 2 == 0})
@triton.autotune(configs=CONFIGS, key=["n"])
@triton.jit
def _doubling_kernel(x_ptr: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr) -> None:
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + o, mask=o < n, other=0.0)
    tl.store(x_ptr + o, 2 * x if IS_EVEN else x, mask=o < n)


def compiled_of_share(cache: Path, share: int, shares: int) -> int:
    """Kernels in a cache after one share was compiled into it."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    driver.set_active(NamedGpu(90))
    with prewarm.share_of_candidates(share, shares):
        _doubling_kernel[(1,)](torch.empty(8, device="meta"), 8)
    return len(list(cache.rglob("*.cubin")))


def test_shares_together_compile_every_candidate_once(tmp_path: Path) -> None:
    counts = [call_afresh(compiled_of_share, tmp_path, share, 3) for share in range(3)]
    assert counts == [2, 4, 5]


def test_a_launch_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(job: Job, sm: int) -> None:
        raise RuntimeError("PassManager::run\n failed")

    job = next(job for job in prewarm_jobs(90) if job.kernel == "infllmv2_attend_kernel")
    monkeypatch.setattr(prewarm, "compile_one", failing)
    assert str(prewarm.compile_job(job, 90)).startswith("infllmv2_attend_kernel bfloat16 ")
    assert str(prewarm.compile_job(job, 90)).endswith(": RuntimeError: PassManager::run failed")


def test_problems_are_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        prewarm, "prewarm", lambda sm, processes, with_peers: iter([None, f"some kernel on SM{sm}", None])
    )
    path = tmp_path / "figures.jsonl"
    assert prewarm.main(["--sm", "86", "--figures", str(path), "--step", "A"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("3 compilations for SM86 in ")
    assert printed.out.endswith(", 1 failed\n")
    assert printed.err == "some kernel on SM86\n"
    assert [figure["kind"] for figure in read_figures(path)] == ["run", "problem"]
