"""What the shipped cubins need of a GPU, from the compiler alone: no spills, and few enough registers and bytes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import triton

from plugins.aot.kernels import CompileJob, compile_job, compile_kernel
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import CONTRACTS

_REGISTERS_PER_BLOCK = 65536
"""32-bit registers that a block may use, on every architecture since 5.0 (CUDA C++ Programming Guide)."""


def shipped_jobs() -> list[CompileJob]:
    jobs = {}
    for contract in CONTRACTS:
        kernel_set = KERNEL_SETS[contract.name]
        for launch in (*kernel_set.prefill, *kernel_set.decode):
            for variant in kernel_set.aot_variants:
                for dtype in kernel_set.aot_dtypes:
                    for sm in AOT_ARCHITECTURES:
                        job = compile_job(contract, kernel_set, launch, activation=dtype, variant=variant, sm=sm)
                        jobs[job] = None
    return list(jobs)


def job_id(job: CompileJob) -> str:
    return "-".join([f"sm{job.sm}", job.kernel, *(f"{name}={value}" for name, value in job.constexprs)])


@pytest.mark.parametrize("job", shipped_jobs(), ids=job_id)
def test_kernel_fits_the_gpu_without_spills(job: CompileJob, tmp_path: Path) -> None:
    compiled = compile_kernel(job)
    assert compiled.shared_bytes <= AOT_ARCHITECTURES[job.sm].shared_limit_bytes
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.cubin)
    report = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    # A kernel without calls and local arrays has a stack frame only for spilled registers.
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0)
    assert usage["REG"] * compiled.threads <= _REGISTERS_PER_BLOCK
