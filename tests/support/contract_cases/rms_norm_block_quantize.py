"""A small call of RMSNormBlockQuantize, and what breaks each of its rules."""

from __future__ import annotations

from . import ContractCase

CASE = ContractCase(
    attributes={"columns": 256, "eps": 1e-6},
    dims={"B": 2, "T": 5},
    broken_rules=(
        ({"T": 0}, "T >= 1"),
        ({"columns": 0}, "columns >= 128"),
        ({"columns": 192}, "128 * fdiv(columns, 128) == columns"),
    ),
)
