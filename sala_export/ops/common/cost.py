"""What a launch moves and computes, as numbers that no GPU is needed for.

`ops/<op>/cost.py` states them for each launch of an operator, beside the least that any implementation moves and
computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelCost:
    """Traffic and work of one launch, or of several together."""

    kernel: str
    """Name of the kernel, or of the operator for a sum or a floor."""
    bytes_read: int
    """Bytes read from device memory, each distinct byte once per pass over it."""
    bytes_written: int
    """Bytes written to device memory."""
    operations: int
    """Operations of tensor-core products, 2 for each multiply-add, also those of a tile beyond the problem."""
    int8_operations: int = 0
    """The same of products of int8, which run at a rate of their own. Their time adds to that of `operations`."""
    bytes_from_cache: int = 0
    """Bytes that all tiles together ask the L2 cache for, where these are many times those of device memory."""

    def __post_init__(self) -> None:
        counts = (self.bytes_read, self.bytes_written, self.operations, self.int8_operations, self.bytes_from_cache)
        if min(counts) < 0:
            raise ValueError(f"{self.kernel}: negative cost")

    @property
    def bytes_moved(self) -> int:
        return self.bytes_read + self.bytes_written

    def seconds(
        self, bytes_per_second: float, operations_per_second: float, int8_operations_per_second: float
    ) -> float:
        """The least time at a GPU's bandwidth and peaks, traffic and work overlapping."""
        products = self.operations / operations_per_second + self.int8_operations / int8_operations_per_second
        return max(self.bytes_moved / bytes_per_second, products)


def total(name: str, costs: Iterable[KernelCost]) -> KernelCost:
    """The sum of launches that follow each other."""
    costs = tuple(costs)
    return KernelCost(
        kernel=name,
        bytes_read=sum(cost.bytes_read for cost in costs),
        bytes_written=sum(cost.bytes_written for cost in costs),
        operations=sum(cost.operations for cost in costs),
        int8_operations=sum(cost.int8_operations for cost in costs),
        bytes_from_cache=sum(cost.bytes_from_cache for cost in costs),
    )
