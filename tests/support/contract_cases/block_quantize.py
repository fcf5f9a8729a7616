"""A small call of BlockQuantize, and what breaks each of its rules."""

from __future__ import annotations

from . import ContractCase

CASE = ContractCase(
    attributes={"columns": 256, "gated": 1},
    dims={"B": 2, "T": 5},
    broken_rules=(
        ({"T": 0}, "T >= 1"),
        ({"columns": 0}, "columns >= 128"),
        ({"columns": 192}, "128 * fdiv(columns, 128) == columns"),
        ({"gated": -1}, "gated >= 0"),
        ({"gated": 2}, "gated <= 1"),
    ),
)
