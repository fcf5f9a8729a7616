"""Reports what every shipped kernel needs of a GPU, without a GPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..ops.common.targets import ARCHITECTURES, SHARED_RESERVED_PER_BLOCK
from .cubin import CubinFacts, read_cubin
from .occupancy import blocks_per_multiprocessor
from .shipped import ShippedKernel
from .tensor_cores import INT8_LOOP, MAIN_LOOP, instructions_per_warp


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelReport:
    """Report on one cubin."""

    shipped: ShippedKernel
    facts: CubinFacts
    blocks: int
    """Per multiprocessor, at once."""

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, static and dynamic."""
        return _shared_bytes(self.shipped, self.facts)

    @property
    def warps(self) -> int:
        """Per multiprocessor, at once."""
        return self.blocks * self.shipped.threads // 32

    @property
    def occupancy(self) -> float:
        """Share of the warps that a multiprocessor can hold."""
        return self.warps / ARCHITECTURES[self.shipped.sm].warps

    @property
    def expected_tensor_core_instructions(self) -> int:
        """Per warp and turn of the main loop, in closed form; 0 for a kernel without tensor-core products."""
        return self._expected(MAIN_LOOP)

    @property
    def expected_int8_instructions(self) -> int:
        """As `expected_tensor_core_instructions`, of the loop that multiplies int8."""
        return self._expected(INT8_LOOP)

    def _expected(self, operands: Collection[str]) -> int:
        warps = self.shipped.threads // 32
        return instructions_per_warp(self.shipped.main_loop, warps=warps, sm=self.shipped.sm, operands=operands)


def _shared_bytes(kernel: ShippedKernel, facts: CubinFacts) -> int:
    # From 9.0 on the tool adds what the system reserves in each block that has shared memory; limits are without it.
    reserved = SHARED_RESERVED_PER_BLOCK if kernel.sm >= 90 and kernel.dynamic_shared_bytes else 0
    return facts.static_shared_bytes - reserved + kernel.dynamic_shared_bytes


def report_kernels(kernels: Sequence[ShippedKernel]) -> tuple[KernelReport, ...]:
    """Read every cubin. Raises: BuildError as `read_cubin`."""
    return tuple(_report(kernel, read_cubin(kernel.cubin, kernel.sm)) for kernel in kernels)


def _report(kernel: ShippedKernel, facts: CubinFacts) -> KernelReport:
    blocks = blocks_per_multiprocessor(
        kernel.sm,
        threads=kernel.threads,
        registers=facts.registers,
        shared_bytes=_shared_bytes(kernel, facts),
    )
    return KernelReport(shipped=kernel, facts=facts, blocks=blocks)
