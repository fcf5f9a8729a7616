"""What drafts did for an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationCounts:
    """Tokens of an answer that were drafted, and how many of these saved a step."""

    tokens: int
    """Tokens that were drawn, a stop token included."""
    drafted: int
    """Drafts that steps ran."""
    accepted: int
    """Drafts that were then drawn, so that they took no step of their own."""

    @property
    def tokens_per_step(self) -> float:
        """Tokens for each step. 1 without drafts."""
        steps = self.tokens - self.accepted
        return self.tokens / steps if steps else 1.0
