"""A small call of BlockScaledLinear, and what breaks each of its rules."""

from __future__ import annotations

from . import ContractCase

CASE = ContractCase(
    attributes={},
    dims={"B": 2, "T": 5, "K": 256, "N": 24},
    broken_rules=(
        ({"T": 0}, "T >= 1"),
        ({"K": 0}, "K >= 128"),
        ({"K": 192}, "128 * fdiv(K, 128) == K"),
        ({"N": 0}, "N >= 8"),
        ({"N": 20}, "8 * fdiv(N, 8) == N"),
    ),
)
