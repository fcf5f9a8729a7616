"""The gate of `benchmarks/kernels.py`: nothing is timed on a GPU where an operator is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernel_cases import LIGHTNING_SIZES, SPARSE_SIZES

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import lightning_checks, sparse_outcomes
from support.oracles import SparseSizes
from support.sparse_outcomes import Case

LIGHTNING_TOKENS = (1, 100, 1100)
"""Decode; one segment; several, the last ragged."""


class RedGateError(Exception):
    """An operator that differs from its reference, in one line."""


def sparse_checks(dtype: torch.dtype) -> dict[str, Case]:
    """Calls at the published sizes, whose selection has more candidates than it may choose: from 6208 tokens on."""
    sizes: dict[str, Any] = dict(SPARSE_SIZES)
    sparse = SparseSizes(**{**sizes, "dense_len": -1})
    return {
        "prefill": Case(tokens=100, past=(6600, 7300), sizes=sparse, dtype=dtype),
        "decode": Case(tokens=1, past=(6600, 7423), sizes=sparse, dtype=dtype),
        "dense prefill": Case(tokens=257, past=(300, 0), sizes=SparseSizes(**sizes), dtype=dtype),
        "dense decode": Case(tokens=1, past=(300, 0), sizes=SparseSizes(**sizes), dtype=dtype),
    }


def require_right_kernels(dtype: torch.dtype, sm: int | None) -> None:
    """Run every operator at a modest size against its float64 reference.

    Raises: RedGateError naming the first difference.
    """
    for tokens in LIGHTNING_TOKENS:
        heads, dim = int(LIGHTNING_SIZES["num_heads"]), int(LIGHTNING_SIZES["head_dim"])
        inputs = lightning_checks.random_inputs(tokens, dim, batch=1, heads=heads)
        with naming(f"LightningAttention, {tokens} tokens"):
            lightning_checks.check_against_reference(
                lightning_checks.in_type(inputs, dtype), dict(LIGHTNING_SIZES), "cuda", sm=sm
            )
    for name, case in sparse_checks(dtype).items():
        with naming(f"InfLLMv2Attention, {name}"):
            outcome = sparse_outcomes.run_kernels(case, device="cuda", sm=sm)
            for row in range(len(case.past)):
                sparse_outcomes.assert_caches(outcome, row)
                sparse_outcomes.assert_output(outcome, row)
                if case.sizes.dense_len < 0:
                    sparse_outcomes.assert_selection(outcome, row)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turns a failed assertion into a `RedGateError` that says where."""
    try:
        yield
    except AssertionError as error:
        why = " ".join(str(error).split())[:200] or "it differs from the float64 reference"
        raise RedGateError(f"{what}: {why}; nothing is measured") from error
