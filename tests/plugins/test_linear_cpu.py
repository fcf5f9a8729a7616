"""Products of the CPU operator `Linear` against numpy in float64 over numbers that ml_dtypes decodes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cpu_operators import library, runnable_simd_levels, simd_level
from support.stored_products import Linear, Weight, coded_weight, unaligned, weight

Array = NDArray[Any]

KINDS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "int4", "nvfp4")
FP32_INPUTS = ("float32", "float16")
"""Kinds whose fast products are exact too."""
STEPS = 2.0**-20
"""Allowed error of a sum, relative to the sum of the magnitudes of its products."""


def rounded(x: Array, kind: str, math: str) -> Array:
    """The inputs as a product sees them, but for int4."""
    return x if math == "exact" or kind in FP32_INPUTS else x.astype(ml_dtypes.bfloat16).astype(np.float32)


def int4_products(x: Array, stored: Weight, group: int) -> Array:
    """The rule of fast int4 products in float64: x as int8 codes with one scale for each token and group."""
    groups = x.astype(np.float64).reshape(x.shape[0], -1, group)
    scales = np.abs(groups).max(-1, keepdims=True) / 127
    codes = np.rint(np.divide(groups, scales, out=np.zeros_like(groups), where=scales > 0))
    return np.asarray((codes * scales).reshape(x.shape) @ stored.numbers.T)


def silu_mul(products: Array) -> Array:
    u, v = np.split(products, 2, axis=-1)
    return np.asarray(u / (1 + np.exp(-u)) * v)


def assert_products(actual: Array, x: Array, stored: Weight, kind: str, math: str, group: int = 128) -> None:
    if kind == "int4" and math == "fast":
        # A code on the edge between two may be rounded either way: one step of one input.
        expected = int4_products(x, stored, min(group, x.shape[1]))
        bound = 0.02 * np.abs(x).max() * np.abs(stored.numbers).max() + 1e-30
        assert np.abs(actual - expected).max() <= bound
        return
    inputs = rounded(x, kind, math).astype(np.float64)
    bound = np.abs(inputs) @ np.abs(stored.numbers).T * STEPS + 1e-30
    excess = np.abs(actual - inputs @ stored.numbers.T) / bound
    assert excess.max() <= 1


def run(x: Array, stored: Weight, kind: str, math: str, **attributes: Any) -> Array:
    values = {"weights": kind, "math": math, "epilogue": "none", "global_scale": 1.0} | attributes
    return Linear(library(), stored.tensors, **values)(x)


@pytest.mark.parametrize("level", runnable_simd_levels())
@pytest.mark.parametrize("math", ["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_awkward_sizes(kind: str, math: str, level: str) -> None:
    rng = np.random.default_rng(0)
    columns = {"int4": (8, 128, 640), "nvfp4": (16, 112, 640)}.get(kind, (1, 31, 65, 640))
    with simd_level(level):
        for width in columns:
            for rows in (1, 33, 70):
                stored = weight(rng, kind, rows, width, 0.75)
                product = Linear(
                    library(),
                    [unaligned(tensor) for tensor in stored.tensors],
                    weights=kind,
                    math=math,
                    epilogue="none",
                    global_scale=0.75 if kind == "nvfp4" else 1.0,
                )
                for tokens in (1, 3, 8, 13, 50):
                    x = rng.standard_normal((tokens, width), dtype=np.float32)
                    assert_products(product(x), x, stored, kind, math)
