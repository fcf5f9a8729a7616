"""A small call of LightningAttention, and what breaks each of its rules."""

from __future__ import annotations

from . import ContractCase

CASE = ContractCase(
    attributes={"num_heads": 4, "head_dim": 8, "eps": 1e-6, "scale": 0.35},
    dims={"B": 2, "T": 5},
    broken_rules=(
        ({"T": 0}, "T >= 1"),
        ({"head_dim": 7}, "2 * fdiv(head_dim, 2) == head_dim"),
        ({"num_heads": 0}, "num_heads >= 1"),
        ({"num_heads": 12}, "is_power_of_two(num_heads) == 1"),
        ({"head_dim": 0}, "head_dim >= 2"),
    ),
)
