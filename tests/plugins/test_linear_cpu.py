"""Products of the CPU operator `Linear` against numpy in float64 over numbers that ml_dtypes decodes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cpu_operators import library, runnable_product_levels, simd_level
from support.stored_products import (
    Linear,
    at_each_level,
    coded_weight,
    mxfp8_cases,
    mxfp8_inputs,
    unaligned,
    weight,
)

Array = NDArray[Any]

KINDS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "mxfp8", "int8", "int4", "nvfp4")
MATHS = ("exact", "fast")
FP32_INPUTS = ("float32", "float16")
"""Kinds whose fast products are exact too."""
STEPS = 2.0**-20
"""Allowed error of a sum, relative to the sum of the magnitudes of its products."""


def int8_inputs(x: Array, group: int) -> Array:
    """The inputs of fast int4 products: int8 codes with one scale for each token and group of columns."""
    groups = x.astype(np.float64).reshape(x.shape[0], -1, min(group, x.shape[1]))
    scales = np.abs(groups).max(-1, keepdims=True) / 127
    codes = np.rint(np.divide(groups, scales, out=np.zeros_like(groups), where=scales > 0))
    return np.asarray((codes * scales).reshape(x.shape))


def silu_mul(halves: Array) -> Array:
    u, v = np.split(halves, 2, axis=-1)
    return np.asarray(u / (1 + np.exp(-u)) * v)


def products(x: Array, numbers: Array, kind: str, math: str, group: int) -> Array:
    """What the operator computes, in float64."""
    if kind == "int4" and math == "fast":
        x = int8_inputs(x, group)
    elif kind == "mxfp8":
        x = mxfp8_inputs(x)
    elif math == "fast" and kind not in FP32_INPUTS:
        x = x.astype(ml_dtypes.bfloat16)
    return np.asarray(x.astype(np.float64) @ numbers.T)


def assert_products(
    found: Iterable[tuple[str, Array]], x: Array, numbers: Array, kind: str, math: str, group: int = 128
) -> None:
    """Judges the results of all levels by one reference, which takes longer than they."""
    expected = products(x, numbers, kind, math, group)
    bound = np.abs(mxfp8_inputs(x) if kind == "mxfp8" else x.astype(np.float64)) @ np.abs(numbers).T * STEPS + 1e-30
    if kind == "int4" and math == "fast":
        # The code of an input between two may be either: one step of one input.
        bound += np.abs(x).max() / 127 * np.abs(numbers).max()
    for level, actual in found:
        assert (np.abs(actual - expected) <= bound).all(), f"{level}, x {x.shape}, weights {numbers.shape}"


def linear(tensors: Sequence[Array], kind: str, math: str, **attributes: Any) -> Linear:
    values: dict[str, Any] = {"weights": kind, "math": math, "epilogue": "none", "global_scale": 1.0} | attributes
    return Linear(library(), tensors, **values)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_awkward_sizes(kind: str, math: str) -> None:
    rng = np.random.default_rng(0)
    widths = {"int4": (8, 128, 640), "nvfp4": (16, 112, 640), "mxfp8": (32, 96, 640)}.get(kind, (1, 31, 65, 640))
    for width in widths:
        for rows in (1, 70):
            stored = weight(rng, kind, rows, width, 0.75)
            addresses = [unaligned(tensor) for tensor in stored.tensors]
            product = linear(addresses, kind, math, global_scale=0.75 if kind == "nvfp4" else 1.0)
            for tokens in (1, 3, 6, 33, 50):
                x = rng.standard_normal((tokens, width), dtype=np.float32)
                assert_products(at_each_level(product, x), x, stored.numbers, kind, math)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_more_tokens_and_columns_than_a_block(kind: str, math: str) -> None:
    rng = np.random.default_rng(1)
    stored = weight(rng, kind, 40, 1280)
    x = rng.standard_normal((520, 1280), dtype=np.float32)
    product = linear(stored.tensors, kind, math)
    assert_products(at_each_level(product, x), x, stored.numbers, kind, math)


@pytest.mark.parametrize("epilogue", ["none", "silu_mul"])
@pytest.mark.parametrize(("kind", "blocks"), [("bfloat16", ()), ("nvfp4", (40,)), ("int8", (5,))])
def test_products_of_more_rows_than_an_item(kind: str, blocks: tuple[int, ...], epilogue: str) -> None:
    """As many rows for each core as make an item of several panels. Tokens have the same bits beside more others."""
    rng = np.random.default_rng(8)
    rows = 2048 * len(os.sched_getaffinity(0)) + 14
    scale_type = ml_dtypes.float8_e4m3fn if kind == "nvfp4" else np.float32
    halves = [
        coded_weight(rng, kind, rows, 640, (rows, *blocks), scale_type) if blocks else weight(rng, kind, rows, 640)
        for _ in range(2)
    ]
    numbers = np.concatenate([half.numbers for half in halves])
    product = linear([tensor for half in halves for tensor in half.tensors], kind, "fast", epilogue=epilogue)
    x = rng.standard_normal((40, 640), dtype=np.float32) / float(64 * np.abs(numbers).mean())
    actual = product(x)
    if epilogue == "none":
        assert_products([("best", actual)], x, numbers, kind, "fast")
    else:
        expected = silu_mul(products(x, numbers, kind, "fast", 128))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(product(x[:37]), actual[:37])


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("tokens", [1, 33])
def test_every_code_is_the_number_it_stands_for(tokens: int, math: str) -> None:
    """All bits of each type as a column of weights for inputs of 1, NaN and infinity among them."""
    wide = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 1)
    narrow = np.arange(256, dtype=np.uint8).reshape(-1, 1)
    one = np.ones(1, np.float32)
    cases = {
        "bfloat16": (wide.view(ml_dtypes.bfloat16),),
        "float16": (wide.view(np.float16),),
        "float8_e4m3fn": (narrow.view(ml_dtypes.float8_e4m3fn), one),
        "int8": (narrow.view(np.int8), one),
    }
    x = np.ones((tokens, 1), np.float32)
    for kind, tensors in cases.items():
        expected = np.broadcast_to(tensors[0].astype(np.float32).T, (tokens, len(tensors[0])))
        # The instructions for bfloat16 take numbers below 2^-126 for 0.
        atol = 2.0**-126 if kind == "bfloat16" else 0.0
        for level, actual in at_each_level(linear(tensors, kind, math), x):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=level)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("tokens", [1, 33])
def test_every_scale_of_nvfp4_is_the_number_it_stands_for(tokens: int, math: str) -> None:
    scales = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    codes = np.zeros((256, 72), np.uint8)
    codes[:, (0, 64)] = 2  # 1 in columns 0 and 128, in a whole vector of codes and in the rest of a row
    x = np.zeros((tokens, 144), np.float32)
    x[:, (0, 128)] = 1
    tensors = (codes, np.repeat(scales[:, None], 9, 1))
    for level, actual in at_each_level(linear(tensors, "nvfp4", math, global_scale=0.5), x):
        np.testing.assert_array_equal(actual, np.broadcast_to(scales.astype(np.float32), actual.shape), level)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("tokens", [3, 33])
def test_every_scale_and_code_of_mxfp8_is_the_number_it_stands_for(tokens: int, math: str) -> None:
    """A scale that is NaN spoils its row of weights."""
    every = np.arange(256, dtype=np.uint8)
    scales = np.stack((every, np.roll(every, 3), every[::-1]), 1)
    codes = np.full((256, 96), 0x38, np.uint8)  # 1
    x = np.zeros((tokens, 96), np.float32)
    for token in range(tokens):
        x[token, (5, 40, 95)[token % 3]] = 1
    expected = np.where(scales == 255, np.nan, np.ldexp(1.0, scales.astype(int) - 127))
    expected += 0 * expected.sum(1, keepdims=True)
    product = linear((codes.view(ml_dtypes.float8_e4m3fn), scales), "mxfp8", math)
    for level, found in at_each_level(product, x):
        # The instructions for bfloat16 take numbers below 2^-126 for 0.
        np.testing.assert_allclose(found, expected.T[np.arange(tokens) % 3], rtol=0, atol=2.0**-126, err_msg=level)
    codes = np.zeros((256, 96), np.uint8)
    codes[:, 40] = every
    values = 8 * every.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    product = linear((codes.view(ml_dtypes.float8_e4m3fn), np.full_like(scales, 130)), "mxfp8", math)
    for level, found in at_each_level(product, x):
        np.testing.assert_array_equal(found[1], values, level)
        assert np.isnan(found[:, np.isnan(values)]).all(), level
        assert not np.nan_to_num(found[::3]).any(), level


@pytest.mark.parametrize("math", MATHS)
def test_inputs_of_mxfp8_are_rounded_by_blocks(math: str) -> None:
    """Products with the unit matrix, so that outputs are inputs as the weights meet them."""
    unit = np.eye(96, dtype=ml_dtypes.float8_e4m3fn)
    product = linear((unit, np.full((96, 3), 127, np.uint8)), "mxfp8", math)
    x = mxfp8_cases()
    expected = mxfp8_inputs(x)
    spoiled = ~(np.abs(expected) < 2.0**128).all(1)  # by NaN, or where the largest float is rounded up
    assert 0 < spoiled.sum() < len(x) / 4
    for level in runnable_product_levels():
        with simd_level(level):
            found = product(x)
            few = np.concatenate([product(rows) for rows in (x[:1], x[1:4], x[4:30])])
        # The instructions for bfloat16 take numbers below 2^-126 for 0.
        atol = 2.0**-126 if math == "fast" and level in ("avx512_bf16", "amx", "neon_matrix") else 0.0
        np.testing.assert_allclose(found[~spoiled], expected[~spoiled], rtol=0, atol=atol, err_msg=level)
        assert not np.isfinite(found[spoiled]).any(), level
        np.testing.assert_array_equal(few, found[:30], level)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        *[("int8", blocks) for blocks in ((), (1, 1), (6, 1), (2,), (6, 5), (3, 10), (2, 40), (6, 640))],
        *[("float8_e4m3fn", blocks) for blocks in ((1,), (6, 10), (2, 128))],
        *[("int4", blocks) for blocks in ((6, 1), (6, 10), (2, 20), (3, 80), (6, 160))],
        *[("nvfp4", blocks) for blocks in ((6, 20), (2, 40), (6, 80), (6, 320))],
    ],
)
def test_scales_of_any_equal_blocks(kind: str, blocks: tuple[int, ...], math: str) -> None:
    rng = np.random.default_rng(2)
    scale_type = ml_dtypes.float8_e4m3fn if kind == "nvfp4" else np.float16
    stored = coded_weight(rng, kind, 6, 640, blocks, scale_type)
    shared = 640 // (blocks[1] if len(blocks) == 2 else 1)
    group = max(size for size in range(1, 129) if shared % size == 0)
    product = linear(stored.tensors, kind, math)
    for tokens in (2, 40):
        x = rng.standard_normal((tokens, 640), dtype=np.float32)
        assert_products(at_each_level(product, x), x, stored.numbers, kind, math, group)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_gated_products_of_several_weights(kind: str, math: str) -> None:
    """Two weights for each half, cut in different places."""
    rng = np.random.default_rng(3)
    parts = [weight(rng, kind, rows, 256) for rows in (30, 41, 60, 11)]
    tensors = [tensor for part in parts for tensor in part.tensors]
    numbers = np.concatenate([part.numbers for part in parts])
    product = linear(tensors, kind, math, epilogue="silu_mul")
    for tokens in (1, 5, 36):
        x = rng.standard_normal((tokens, 256), dtype=np.float32) / np.float32(np.abs(numbers).max() * 8)
        expected = silu_mul(products(x, numbers, kind, math, 128))
        tolerance = 2e-2 if kind == "int4" and math == "fast" else 1e-5
        for level, actual in at_each_level(product, x):
            atol = tolerance * np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=level)


@pytest.mark.parametrize("kind", ["bfloat16", "int4"])
def test_weights_without_rows_are_passed_over(kind: str) -> None:
    rng = np.random.default_rng(7)
    parts = [weight(rng, kind, rows, 256) for rows in (30, 41)]
    codes, *scales = parts[0].tensors
    none = [codes[:0], *(blocks[:1] for blocks in scales)]
    product = linear([*none, *parts[0].tensors, *none, *parts[1].tensors, *none], kind, "fast")
    for tokens in (1, 36):
        x = rng.standard_normal((tokens, 256), dtype=np.float32)
        assert_products(at_each_level(product, x), x, np.concatenate([part.numbers for part in parts]), kind, "fast")


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_not_finite_spoil_their_own_token(kind: str, math: str) -> None:
    rng = np.random.default_rng(4)
    columns = 160 if kind == "mxfp8" else 144
    stored = weight(rng, kind, 20, columns)
    product = linear(stored.tensors, kind, math)
    for tokens in (4, 40):
        x = rng.standard_normal((tokens, columns), dtype=np.float32)
        x[0, 140], x[1, 3], x[2] = np.nan, -np.inf, 0
        found = list(at_each_level(product, x))
        for level, actual in found:
            assert np.isnan(actual[0]).all(), level
            assert not np.isfinite(actual[1]).any(), level
            assert not actual[2].any(), level
        finite = [(level, actual[2:]) for level, actual in found]
        assert_products(finite, x[2:], stored.numbers, kind, math, 72)


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(5)
    stored = weight(rng, "bfloat16", 300, 520)
    products = [linear(stored.tensors, "bfloat16", "fast", threads=threads) for threads in (1, 2)]
    for tokens in (2, 70):
        x = rng.standard_normal((tokens, 520), dtype=np.float32)
        one, two = (product(x) for product in products)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32), (2, 3, 32), (32,)])
def test_inputs_keep_their_leading_dimensions(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    stored = weight(rng, "float32", 5, 32)
    x = rng.standard_normal(shape, dtype=np.float32)
    actual = linear(stored.tensors, "float32", "exact")(x)
    assert actual.shape == (*shape[:-1], 5)
    np.testing.assert_allclose(actual, x @ stored.numbers.T, atol=1e-5)


W8 = np.zeros((8, 64), np.int8)
MX8 = W8.view(ml_dtypes.float8_e4m3fn)
F32 = np.zeros((8, 64), np.float32)
ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("tensors", "attributes", "message"),
    [
        ((F32,), {"kind": "int5"}, 'weights is "int5"; take one of float32, bfloat16'),
        ((F32,), {"math": "slow"}, 'math is "slow"; take "exact" or "fast"'),
        ((F32,), {"epilogue": "gelu"}, 'epilogue is "gelu"; take "none" or "silu_mul"'),
        ((F32,), {"kind": "bfloat16"}, "input 1 has the element type 1, which is not that of bfloat16 weights"),
        ((F32[:, :60],), {}, r"input 1 \[8, 60\] is no matrix of float32 weights for x with 64 columns"),
        ((F32.reshape(8, 8, 8),), {}, r"input 1 \[8, 8, 8\] is no matrix"),
        ((W8,), {"kind": "int8"}, "the last of the weights has no scales"),
        ((W8, np.ones((3, 7), np.float32)), {"kind": "int8"}, r"scales \[3, 7\] do not divide weights \[8, 64\]"),
        ((W8, np.ones((1, 1, 2), np.float32)), {"kind": "int8"}, r"scales \[1, 1, 2\] are no number, vector or"),
        ((W8, np.ones(8, np.int8)), {"kind": "int8"}, "scales of int8 weights have the element type 3"),
        ((MX8, np.ones(8, np.float32)), {"kind": "mxfp8"}, "scales of mxfp8 weights have the .* 1; take uint8"),
        ((MX8, np.ones((8, 4), np.uint8)), {"kind": "mxfp8"}, "are not one for each 32 columns of a row"),
        ((F32,), {"epilogue": "silu_mul"}, "silu_mul takes an even number of weights, not 1"),
        ((F32, F32[:6]), {"epilogue": "silu_mul"}, "silu_mul takes two halves of equal width, not 8 and 6"),
    ],
)
def test_bad_calls_are_refused(tensors: tuple[Array, ...], attributes: dict[str, Any], message: str) -> None:
    values = {"kind": "float32", "math": "exact"} | attributes
    with pytest.raises(Exception, match=f"Linear: .*{message}"):
        linear([np.ascontiguousarray(tensor) for tensor in tensors], **values)(np.zeros((2, 64), np.float32))
