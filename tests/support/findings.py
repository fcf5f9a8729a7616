"""What a comparison with a reference found, one tensor at a time: tests assert it, a benchmark's gate reports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One tensor beside its reference."""

    tensor: str
    error: float
    """A fraction of the largest exact value, or a count of elements that differ where `limit` is 0."""
    limit: float

    @property
    def passed(self) -> bool:
        """An error that is no number is within no limit."""
        return self.error <= self.limit

    def __str__(self) -> str:
        return f"{self.tensor}: error {self.error:.3g}, limit {self.limit:.3g}"


def failed(findings: Sequence[Finding]) -> str:
    """Those that did not pass, in one line; empty if all did."""
    return ", ".join(str(finding) for finding in findings if not finding.passed)


def largest_error(tensor: str, actual: Tensor, exact: Tensor, limit: float) -> Finding:
    """The largest error of any element, as a fraction of the largest exact value; `limit` likewise."""
    if not exact.numel():
        return Finding(tensor=tensor, error=0.0, limit=limit)
    error = float((actual.double() - exact).abs().max())
    # Absolute where everything is zero: a difference there is then no fraction of anything.
    return Finding(tensor=tensor, error=error / (float(exact.abs().max()) or 1.0), limit=limit)


def differing(tensor: str, is_wrong: Tensor) -> Finding:
    """The number of elements that are wrong, of which none may be."""
    return Finding(tensor=tensor, error=float(is_wrong.sum()), limit=0.0)


def assert_passed(findings: Sequence[Finding]) -> None:
    """Fail with every tensor that is off, its error and its limit."""
    assert not (problems := failed(findings)), problems
