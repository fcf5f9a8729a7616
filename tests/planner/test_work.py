"""Work and floors against numbers that were computed elsewhere: the project's table of floors, and plain sums."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest

from sala_export.checkpoint.presets import PRESETS
from sala_export.engine.recipe import GpuRecipe, load_recipe, recipe_paths
from sala_export.errors import UnsupportedError
from sala_export.planner.published import CONTEXTS, QWEN3_8B
from sala_export.planner.roofline import WEIGHT_BITS, bounded_blocks, has_rates, time_of_decode, time_of_prefill
from sala_export.planner.work import Kind, Sala

NINE = Sala(PRESETS["9b"].config)
MILLION = 1 << 20


def h100() -> GpuRecipe:
    return replace(
        load_recipe("a6000"),
        name="h100",
        memory_gigabytes_per_second=3350,
        peak_tera_operations_per_second={"bf16": 989.0, "fp16": 989.0},
    )


def test_a_million_tokens_are_22_peta_operations_with_the_known_shares() -> None:
    phases: Counter[Kind] = Counter()
    for phase in NINE.prefill(MILLION, 8192, 16, bounded_blocks=0):
        phases[phase.kind] += phase.operations  # type: ignore[assignment]
    total = sum(phases.values())
    assert total == pytest.approx(22.35e15, rel=0.003)
    for kind, share in (
        (Kind.GEMM, 0.83),
        (Kind.SELECTION, 0.126),
        (Kind.SPARSE_ATTENTION, 0.038),
        (Kind.LIGHTNING, 0.0035),
    ):
        assert phases[kind] / total == pytest.approx(share, rel=0.02), kind


def test_a_token_is_17_75_giga_operations_of_products() -> None:
    operations = sum(
        phase.operations for phase in NINE.prefill(MILLION, MILLION, 16, bounded_blocks=0) if phase.kind is Kind.GEMM
    )
    assert operations / MILLION == pytest.approx(17.75e9, rel=0.001)


@pytest.mark.parametrize(
    ("recipe", "floors"),
    [
        (load_recipe("rtx5090"), (5.9, 11.9, 24.1, 50.0, 106.7)),
        (load_recipe("a6000"), (7.9, 16.0, 32.7, 67.6, 144.4)),
        (h100(), (1.2, 2.5, 5.1, 10.6, 22.6)),
    ],
    ids=lambda value: value.name if isinstance(value, GpuRecipe) else "",
)
def test_floors_with_exact_scores_alone_are_the_known_ones(recipe: GpuRecipe, floors: tuple[float, ...]) -> None:
    for context, known in zip(CONTEXTS, floors, strict=True):
        floor = time_of_prefill(NINE.prefill(context, 8192, 16, bounded_blocks=0), recipe, "bf16").floor
        assert floor == pytest.approx(known, rel=0.01, abs=0.06), context


@pytest.mark.parametrize("tokens", [1 << 17, 64 * (3072 + 33), 64 * (3072 + 33) + 1, 1 << 18])
def test_bounds_are_the_k1_products_of_tokens_far_into_the_context(tokens: int) -> None:
    """From 3072 candidates on: blocks but the initial one, 32 of the window and the own one."""
    bounded = [t for t in range(tokens) if t // 64 - 32 - 1 >= 3072]
    windows = sum((t - 31) // 16 + 1 for t in bounded)
    all_windows = sum(max(0, (t - 31) // 16 + 1) + max(0, (t - 127) // 64 + 1) for t in range(tokens))
    work = {phase.kind: phase.operations for phase in NINE.prefill(tokens, 8192, 16, bounded_blocks=3072)}
    per_key = 2 * 32 * 128 * 8
    assert work.get(Kind.BOUNDS, 0) == per_key * windows
    assert work[Kind.SELECTION] == per_key * (all_windows - windows)
    # 62 blocks in 64 places and 296 in 320, of five keys.
    assert work.get(Kind.SURVIVORS, 0) == per_key * len(bounded) * 384 * 5


def test_bounds_run_at_the_rate_of_int8_and_exact_scores_are_not_in_the_floor() -> None:
    recipe = load_recipe("rtx5090")
    phases = {phase.kind: phase for phase in NINE.prefill(MILLION, 8192, 16, bounded_blocks=bounded_blocks(recipe))}
    bounds, survivors = (time_of_prefill([phases[kind]], recipe, "bf16") for kind in (Kind.BOUNDS, Kind.SURVIVORS))
    assert bounds.floor == pytest.approx(phases[Kind.BOUNDS].operations / 838e12)
    assert survivors.floor == 0
    assert survivors.predicted > 0


def test_caches_that_have_no_room_for_codes_have_no_bounds() -> None:
    kinds = [{phase.kind for phase in NINE.prefill(n, 8192, 16, bounded_blocks=1)} for n in (1 << 24, (1 << 24) + 1)]
    assert [Kind.BOUNDS in found for found in kinds] == [True, False]


def test_rate_of_int8_is_asked_for_where_there_are_bounds() -> None:
    rates = {"bf16": 209.5}
    recipe = replace(load_recipe("rtx5090"), peak_tera_operations_per_second=rates)
    phases = NINE.prefill(MILLION, 8192, 16, bounded_blocks=bounded_blocks(recipe))
    with pytest.raises(
        UnsupportedError, match=r"has no peak_tera_operations_per_second\.int8: add it to plan for bf16"
    ):
        time_of_prefill(phases, recipe, "bf16")
    assert not has_rates(recipe, "bf16")
    assert has_rates(load_recipe("rtx5090"), "bf16")


@pytest.mark.parametrize(
    ("gpu", "bits", "short_ms", "long_ms"),
    [("rtx5090", 16, 10.2, 10.5), ("a6000", 16, 23.9, 24.5), ("rtx5090", 4.125, 3.0, 3.2), ("a6000", 4.125, 6.9, 7.5)],
)
def test_decode_floors_are_the_known_ones(gpu: str, bits: float, short_ms: float, long_ms: float) -> None:
    recipe = load_recipe(gpu)
    # The known figures quantise the gates of the mixers too, which here stay in 16 bits.
    gates = 1e3 * 32 * 4096**2 * (16 - bits) / 8 / (recipe.memory_gigabytes_per_second * 1e9)
    for context, known in ((1024, short_ms), (MILLION, long_ms)):
        floor = time_of_decode(NINE.decode(context, bits), 32, recipe).floor
        assert 1e3 * floor == pytest.approx(known + gates, rel=0.02), context


@pytest.mark.parametrize(
    ("gpu", "precision", "rate"),
    [("rtx5090", "fp8", 419), ("rtx5090", "int8", 838), ("rtx5090", "nvfp4", 1676), ("rtx5090", "int4", 209.5)],
)
def test_quantised_products_run_at_the_rate_of_their_type_and_exact_attention_in_16_bits(
    gpu: str, precision: str, rate: float
) -> None:
    recipe = load_recipe(gpu)
    phases = NINE.prefill(MILLION, 8192, WEIGHT_BITS[precision], bounded_blocks=0)
    of_weights = 2 * 32 * (3 * 4096 * 16384) + 2 * 24 * 4 * 4096**2 + 2 * 8 * (2 * 4096**2 + 2 * 4096 * 256)
    quantized = [phase for phase in phases if phase.quantized]
    assert sum(phase.operations for phase in quantized) == pytest.approx(of_weights * MILLION)
    others = [phase for phase in phases if not phase.quantized]
    floor = time_of_prefill(phases, recipe, precision).floor
    rest = time_of_prefill(others, recipe, "bf16").floor
    assert floor - rest == pytest.approx(of_weights * MILLION / (rate * 1e12), rel=1e-3)


def test_rate_that_a_recipe_does_not_state_is_asked_for() -> None:
    phases = NINE.prefill(MILLION, 8192, WEIGHT_BITS["fp8"], bounded_blocks=0)
    with pytest.raises(UnsupportedError, match=r"has no peak_tera_operations_per_second\.fp8: add it to plan for fp8"):
        time_of_prefill(phases, h100(), "fp8")


@pytest.mark.parametrize("tokens", [1, 63, 64, 127, 128, 6143, 6144, 8191, 8192, 8193, 20000])
def test_attention_work_is_the_sum_over_rows(tokens: int) -> None:
    sparse = tokens >= 8192
    keys = sum(min(t + 1, 6144) if sparse else t + 1 for t in range(tokens))
    windows = sum(max(0, (t - 31) // 16 + 1) + max(0, (t - 127) // 64 + 1) for t in range(tokens)) if sparse else 0
    work = {phase.kind: phase.operations for phase in NINE.prefill(tokens, 8192, 16, bounded_blocks=0)}
    assert work[Kind.SPARSE_ATTENTION] == 4 * 32 * 128 * keys * 8
    assert work[Kind.SELECTION] == 2 * 32 * 128 * windows * 8


def test_dense_attention_work_is_the_sum_over_rows() -> None:
    work = {phase.kind: phase.operations for phase in QWEN3_8B.prefill(1000, 8192, 16)}
    assert work[Kind.DENSE_ATTENTION] == 4 * 32 * 128 * 36 * sum(range(1, 1001))


def test_caches_are_the_known_ones() -> None:
    state = 24 * 32 * 128 * 128 * 4
    assert NINE.cache_bytes(MILLION) - state == pytest.approx(8 * 2**30 + 320 * 2**20, rel=1e-4)
    assert QWEN3_8B.cache_bytes(1) == 147_456
    assert QWEN3_8B.weights_bytes(16) == pytest.approx(2 * 8.19e9, rel=0.002)
    assert NINE.weights_bytes(16) == 18_954_407_936


def test_prediction_is_never_below_the_floor() -> None:
    for gpu in recipe_paths():
        recipe = load_recipe(gpu)
        for context in CONTEXTS:
            phases = NINE.prefill(context, 8192, 16, bounded_blocks=bounded_blocks(recipe))
            prefill = time_of_prefill(phases, recipe, "bf16")
            decode = time_of_decode(NINE.decode(context, 16), 32, recipe)
            assert prefill.floor < prefill.predicted < 2 * prefill.floor
            assert decode.floor < decode.predicted < 2 * decode.floor


def test_many_layers_are_listed_once() -> None:
    """A plan asks for these sums in each step of its search."""
    deep = Sala(replace(NINE.config, mixer_types=NINE.config.mixer_types * 30))
    begin = time.monotonic()
    for tokens in range(1, 200):
        deep.prefill(tokens, 8192, 8, bounded_blocks=3072)
        deep.decode(tokens, 8)
        assert deep.weights_bytes(16) > 20 * NINE.weights_bytes(16)
    assert time.monotonic() - begin < 2
