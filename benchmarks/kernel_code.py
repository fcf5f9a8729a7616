"""What the shipped kernels issue, and which limit of a GPU their main loops meet first. Needs no GPU.

    python -m benchmarks.kernel_code [--call "InfLLM-v2, 128K at once"] [--gpu rtx5090]

Each kernel with products is taken at a published call. Its operations, by `ops/*/cost.py`, over those of one turn of
its main loop give the turns. The cubin says how many instructions a warp issues in a turn. A multiprocessor issues four
of them in a cycle, and its tensor cores take a fixed number of operations in one. Where a kernel has several main
loops, the shortest counts. Bytes of the L2 cache are those that tiles ask for in all. Every time is a limit, which no
launch beats, and the largest is the one to work on. All of it is predicted: no latency is in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.gpu_machine import known_gpus, rates_of
from benchmarks.kernel_account import DTYPE, GPUS
from benchmarks.kernel_cases import Case, published_cases
from benchmarks.kernel_measure import account
from benchmarks.tables import duration, markdown
from sala_export.engine.recipe import GpuRecipe
from sala_export.errors import RequestError, SalaError
from sala_export.installation import plugin_library
from sala_export.kernel_report.report import KernelReport, report_kernels
from sala_export.kernel_report.shipped import shipped_kernels
from sala_export.ops.common.cost import KernelCost
from sala_export.ops.common.targets import require_architecture

OPERATIONS_PER_CYCLE: Mapping[int, int] = {86: 1024, 87: 2048, 89: 512, 90: 4096, 110: 8192, 120: 512, 121: 1024}
"""16-bit products with fp32 sums, of the tensor cores of one multiprocessor, 2 for each multiply-add. By NVIDIA's
architecture papers: the peak rate over multiprocessors and boost clock."""
CACHE_BYTES_PER_SECOND: Mapping[str, float] = {"h100": 9e12, "h200": 9e12, "rtx5090": 9e12, "a6000": 4e12}
"""The L2 cache at its best, by GPU. Assumed: the most that was published by those who measured it, or seen."""
_ISSUED_PER_CYCLE = 4
_CALLS = (
    *("Lightning, chunk of 8K", "InfLLM-v2, dense prompt of 8064", "InfLLM-v2, 128K at once"),
    "InfLLM-v2, last 8K of 1M",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopLimits:
    """One loop of a kernel at one call on one GPU; cycles are those of a multiprocessor for one turn of one block."""

    gpu: str
    report: KernelReport
    loop: str
    """`int8` for the loop that multiplies it, `16 bits` for the one beside it, and `both` for the sum of their seconds;
    empty where a kernel has one loop."""
    instructions: tuple[int, ...]
    """Of a turn; of each loop that has as many products."""
    issue_cycles: float
    tensor_cycles: float
    seconds: Mapping[str, float]
    """The least time by limit: `memory`, `cache` where its rate is known, `tensor cores`, `issue`."""

    @property
    def binding(self) -> str:
        """The limit that is met first."""
        return max(self.seconds, key=lambda limit: self.seconds[limit])


def limits_of(case: Case, gpu: str) -> Iterator[LoopLimits]:
    """Every launch of a call that has products, in order. Raises: BuildError as `shipped_kernels`."""
    rates = rates_of(gpu)
    sm = require_architecture(rates.compute_capability)
    costs = {cost.kernel: cost for cost in account(case, DTYPE, sm)[0]}
    wanted = [
        kernel
        for kernel in shipped_kernels(plugin_library())
        if kernel.sm == sm
        and kernel.kernel in costs
        and kernel.main_loop
        and DTYPE.value in kernel.activations
        and any(variant["head_dim"] == case.attributes["head_dim"] for variant in kernel.variants)
    ]
    for report in sorted(report_kernels(wanted), key=lambda report: list(costs).index(report.shipped.kernel)):
        yield from _limits(report, costs[report.shipped.kernel], rates)


def _limits(report: KernelReport, cost: KernelCost, rates: GpuRecipe) -> Iterator[LoopLimits]:
    """Bytes are those of the whole kernel, so that they stand beside its only loop, or beside the sum of two."""
    facts, peaks = report.facts, rates.peak_tera_operations_per_second
    per_cycle = OPERATIONS_PER_CYCLE[report.shipped.sm]
    bytes_seconds = {"memory": cost.bytes_moved / (rates.memory_gigabytes_per_second * 1e9)}
    if rates.name in CACHE_BYTES_PER_SECOND:
        bytes_seconds["cache"] = cost.bytes_from_cache / CACHE_BYTES_PER_SECOND[rates.name]
    main = _of_loop(report, rates, "", facts.loop_instructions, cost.operations, per_cycle, peaks["bf16"])
    if not facts.int8_instructions:
        yield replace(main, seconds={**bytes_seconds, **main.seconds})
        return
    per_cycle *= peaks["int8"] / peaks["bf16"]
    int8 = _of_loop(report, rates, "int8", facts.int8_loop_instructions, cost.int8_operations, per_cycle, peaks["int8"])
    products = {limit: main.seconds[limit] + int8.seconds[limit] for limit in main.seconds}
    yield from (replace(main, loop="16 bits"), int8)
    yield LoopLimits(
        gpu=rates.name,
        report=report,
        loop="both",
        instructions=(),
        issue_cycles=0,
        tensor_cycles=0,
        seconds={**bytes_seconds, **products},
    )


def _of_loop(
    report: KernelReport,
    rates: GpuRecipe,
    loop: str,
    instructions: tuple[int, ...],
    operations: float,
    per_cycle: float,
    peak: float,
) -> LoopLimits:
    shipped = report.shipped
    products = [product for product in shipped.main_loop if (product.operand == "int8") == (loop == "int8")]
    tensor_cycles = sum(2 * product.m * product.n * product.k for product in products) / per_cycle
    issue_cycles = min(instructions) * shipped.threads / 32 / _ISSUED_PER_CYCLE
    tensor_seconds = operations / (peak * 1e12)
    return LoopLimits(
        gpu=rates.name,
        report=report,
        loop=loop,
        instructions=instructions,
        issue_cycles=issue_cycles,
        tensor_cycles=tensor_cycles,
        seconds={"tensor cores": tensor_seconds, "issue": tensor_seconds * issue_cycles / tensor_cycles},
    )


def page(case: Case, gpus: Sequence[str]) -> str:
    """The limits of a call as markdown."""
    header = (
        *("kernel", "GPU", "registers", "blocks", "instructions", "issue cycles", "tensor cycles"),
        *("memory", "L2 cache", "tensor cores", "issue", "binds"),
    )
    lines = [_line(limits) for gpu in gpus for limits in limits_of(case, gpu)]
    return markdown(header, sorted(lines))


def _line(limits: LoopLimits) -> tuple[str, ...]:
    seconds = limits.seconds
    return (
        f"`{limits.report.shipped.kernel}`" + (f", {limits.loop}" if limits.loop else ""),
        limits.gpu,
        str(limits.report.facts.registers),
        str(limits.report.blocks),
        ", ".join(map(str, limits.instructions)),
        f"{limits.issue_cycles:.0f}" if limits.instructions else "",
        f"{limits.tensor_cycles:.0f}" if limits.instructions else "",
        duration(seconds["memory"]) if "memory" in seconds else "",
        duration(seconds["cache"]) if seconds.get("cache") else "",
        duration(seconds["tensor cores"]),
        duration(seconds["issue"]),
        limits.binding,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for a call or GPU that there is not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_code", description=__doc__.split("\n")[0])
    parser.add_argument("--call", action="append", help="published call, by its name (default: one for each loop)")
    parser.add_argument("--gpu", action="append", choices=known_gpus(), help="GPU (default: " + ", ".join(GPUS) + ")")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    cases = {case.name: case for case in published_cases()}
    try:
        for name in options.call or _CALLS:
            if name not in cases:
                raise RequestError(f"{name}: no published call, there are: {'; '.join(cases)}")
            print(f"{name}:\n\n{page(cases[name], options.gpu or GPUS)}\n")
    except SalaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
