"""What `tests/ops/test_contracts.py` needs to know of each operator: one module for each, named as the operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module


@dataclass(frozen=True, kw_only=True, slots=True)
class ContractCase:
    """A small call that keeps the contract and that the operator runs in no time."""

    attributes: Mapping[str, int | float]
    dims: Mapping[str, int]
    broken_rules: Sequence[tuple[Mapping[str, int], str]]
    """Changes to integer attributes and dimensions, each with the rule that they break first; every rule has one."""
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Values of the inputs that are not drawn at random."""


def contract_case(operator: str) -> ContractCase:
    case = import_module(f"support.contract_cases.{operator}").CASE
    assert isinstance(case, ContractCase)
    return case
