"""Fast products of int4 weights against numpy: the same rule, with sums in float64."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cpu_operators import library
from support.stored_products import Linear, Weight, at_each_level, coded_weight, spread, unaligned

Array = NDArray[Any]

LONGEST_GROUP = 128
TOKENS = (1, 2, 3, 4, 7, 12, 13, 17, 50)
"""Numbers of tokens that take every path of the kernels."""
ROUNDING = 2.0**-20
"""Allowed error of a sum in fp32, relative to the sum of magnitudes, before the 8 is taken from the nibbles."""


def int4_weight(
    rows: int, columns: int, blocks: tuple[int, ...], seed: int = 0, scale_type: Any = ml_dtypes.bfloat16
) -> Weight:
    return coded_weight(np.random.default_rng(seed), "int4", rows, columns, blocks, scale_type)


def inputs(tokens: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + 1000).standard_normal((tokens, columns), dtype=np.float32)


def group_of(columns: int) -> int:
    """The largest part of the columns of a scale that one scale of the inputs serves."""
    return max(size for size in range(1, min(columns, LONGEST_GROUP) + 1) if columns % size == 0)


def coded_inputs(x: Array, group: int) -> Array:
    """The numbers that the codes of the inputs stand for."""
    groups = x.reshape(x.shape[0], -1, group)
    scales = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(groups, scales, out=np.zeros_like(groups), where=scales > 0)).clip(-127, 127)
    return np.asarray((codes.astype(np.float64) * scales).reshape(x.shape))


def product(weights: Sequence[Weight], *, threads: int = 2, epilogue: str = "none") -> Linear:
    tensors = [unaligned(tensor) for weight in weights for tensor in weight.tensors]
    attributes = {"weights": "int4", "math": "fast", "epilogue": epilogue, "global_scale": 1.0}
    return Linear(library(), tensors, threads=threads, **attributes)


def assert_follows_rule(run: Linear, x: Array, weights: Sequence[Weight], columns_of_scale: int) -> None:
    """Judges the products of all levels by one reference, which takes longer than they."""
    coded = coded_inputs(x, group_of(columns_of_scale))
    numbers = np.concatenate([weight.numbers for weight in weights])
    scales = np.concatenate([spread(weight.tensors[1], *weight.numbers.shape) for weight in weights])
    bound = np.abs(coded) @ (np.abs(numbers) + 8 * scales).T * ROUNDING
    expected = coded @ numbers.T
    for level, actual in at_each_level(run, x):
        assert actual.shape == expected.shape, level
        assert (np.abs(actual - expected) <= bound).all(), f"{level}, x {x.shape}, weights {numbers.shape}"


@pytest.mark.parametrize(
    ("columns", "columns_of_scale"),
    [(8, 8), (40, 1), (104, 13), (96, 32), (150, 75), (128, 128), (640, 128), (768, 256), (1208, 1208)],
)
def test_products_follow_the_rule(columns: int, columns_of_scale: int) -> None:
    for rows in (1, 35, 131):
        weight = int4_weight(rows, columns, (rows, columns // columns_of_scale), seed=rows)
        run = product([weight])
        for tokens in TOKENS:
            x = inputs(tokens, columns, seed=tokens)
            assert_follows_rule(run, x, [weight], columns_of_scale)


def test_rows_of_more_groups_than_a_panel_holds() -> None:
    weight = int4_weight(3, 4224, (3, 33), scale_type=np.float16)
    assert_follows_rule(product([weight]), inputs(20, 4224), [weight], 128)


def test_items_of_several_panels() -> None:
    """As many rows for each core as make such items. Tiles of AMX give the bits of AVX-512."""
    rows = 4 * len(os.sched_getaffinity(0)) * LONGEST_GROUP + 35
    weights = [int4_weight(rows, 256, (rows, 2), seed=seed) for seed in range(2)]
    x = inputs(20, 256) / 64
    plain, gated = (product(weights, epilogue=epilogue) for epilogue in ("none", "silu_mul"))
    assert_follows_rule(plain, x, weights, 128)
    found = dict(at_each_level(gated, x))
    u, v = np.split(plain(x).astype(np.float64), 2, axis=1)
    for level, actual in found.items():
        np.testing.assert_allclose(actual, u / (1 + np.exp(-u)) * v, rtol=2e-6, atol=1e-6, err_msg=level)
    if "amx" in found:
        np.testing.assert_array_equal(found["amx"], found["avx512_bf16"])


@pytest.mark.parametrize("scale_type", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("blocks", [(1,), (30,), (30, 1), (6, 2), (30, 6)])
def test_scales_of_every_type_and_shape(blocks: tuple[int, ...], scale_type: Any) -> None:
    weight = int4_weight(30, 768, blocks, scale_type=scale_type)
    run = product([weight])
    for tokens in (1, 4, 20):
        x = inputs(tokens, 768)
        assert_follows_rule(run, x, [weight], 768 // (blocks[1] if len(blocks) == 2 else 1))


def test_weights_one_after_another_share_the_codes_of_inputs() -> None:
    for blocks, group in ((4, 32), (3, 128)):  # groups are the common part of 128, of 96 or 128, and of 384
        second = int4_weight(40, 384, (40, blocks), seed=1)
        weights = [int4_weight(7, 384, (7, 3)), second, int4_weight(1, 384, (1, 1), seed=2)]
        run = product(weights)
        for tokens in (1, 3, 20):
            assert_follows_rule(run, inputs(tokens, 384), weights, group)


@pytest.mark.parametrize("rows", [(5, 5), (16, 48, 60, 4), (37, 37)])
def test_silu_mul_of_both_halves(rows: tuple[int, ...]) -> None:
    weights = [int4_weight(count, 256, (count, 2), seed=count) for count in rows]
    half = sum(rows) // 2
    plain, gated = product(weights), product(weights, epilogue="silu_mul")
    for tokens in TOKENS:
        x = inputs(tokens, 256, seed=tokens) / 64
        for (level, products), (_, actual) in zip(at_each_level(plain, x), at_each_level(gated, x), strict=True):
            u, v = np.split(products.astype(np.float64), [half], axis=1)
            np.testing.assert_allclose(actual, u / (1 + np.exp(-u)) * v, rtol=2e-6, atol=1e-6, err_msg=level)


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_group_that_is_not_finite_makes_its_token_nan_alone(tokens: int) -> None:
    weight = int4_weight(33, 384, (33, 3))
    weight.tensors[0][:, 64:128] = 0x88  # every weight of the second group is zero
    run = product([weight])
    for value in (np.nan, np.inf, -np.inf):
        x = inputs(tokens, 384)
        x[-1, 130] = value
        for level, y in at_each_level(run, x):
            assert np.isnan(y[-1]).all(), level
            assert np.isfinite(y[:-1]).all(), level


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_inputs_at_the_ends_of_their_range(tokens: int) -> None:
    weight = int4_weight(33, 512, (33, 4))
    x = np.zeros((tokens, 512), np.float32)
    run = product([weight])
    assert all((y == 0).all() for _, y in at_each_level(run, x))
    x[:, :128] = 2.0**-149 * np.arange(-64, 64)  # subnormal scales
    assert all(np.abs(y).max() < 1e-35 for _, y in at_each_level(run, x))
    x[:, 128:256] = np.arange(-64, 64) / 2 / 127  # codes between two integers
    x[:, 256] = 3e34
    x[:, 257:384] = -3e34
    assert_follows_rule(run, x, [weight], 128)


def test_tokens_of_a_long_prompt_are_those_of_short_ones() -> None:
    weight = int4_weight(35, 256, (35, 2))
    run = product([weight])
    x = inputs(1000, 256)
    assert np.array_equal(run(x), np.concatenate([run(x[:500]), run(x[500:])]))


@pytest.mark.parametrize("tokens", [5, 100])
def test_number_of_threads_does_not_change_a_bit(tokens: int) -> None:
    weight = int4_weight(300, 256, (300, 2))
    x = inputs(tokens, 256)
    assert np.array_equal(product([weight], threads=1)(x), product([weight], threads=3)(x))


def test_distance_from_the_exact_product_is_about_half_a_percent() -> None:
    weight = int4_weight(256, 4096, (256, 32))
    x = inputs(32, 4096)
    exact = x.astype(np.float64) @ weight.numbers.T
    error = np.linalg.norm(product([weight])(x) - exact) / np.linalg.norm(exact)
    assert 0.003 < error < 0.008
