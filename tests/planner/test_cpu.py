"""Plans of a machine without a GPU, against figures worked out by hand from the published sizes."""

from __future__ import annotations

import pytest
from support.cpu_operators import PRODUCT_LEVELS

from sala_export.building.planned_graph import planned_graph
from sala_export.checkpoint.quantization import Quantization
from sala_export.errors import RequestError
from sala_export.planner.cpu import CPU_PRECISIONS, PlannedCpuForm, cpu_precisions, needed_bytes, needs, plan_cpu
from sala_export.planner.cpu_rates import RELATIVE_RATES, CpuMachine, Figure, Source, rates, this_machine
from sala_export.planner.published import PUBLISHED_CONFIG
from sala_export.planner.work import Sala
from sala_export.specs import CpuMath, Precision

GIB = 2**30
HIDDEN, HEADS, KV_HEADS, DIM, VOCABULARY = 4096, 32, 2, 128, 73448
"""Of docs/model.md: 24 layers of Lightning, 8 of InfLLM-v2."""


def machine(memory_gib: float = 24, gigabytes_per_second: float = 40, gigaflops: float = 200) -> CpuMachine:
    return CpuMachine(
        cores=2,
        simd_level="avx512_bf16",
        memory_bytes=Figure(value=memory_gib * GIB, source=Source.GIVEN),
        bytes_per_second=Figure(value=1e9 * gigabytes_per_second, source=Source.GIVEN),
        operations_per_second=rates(1e9 * gigaflops, "avx512_bf16"),
    )


def test_every_level_has_rates_and_few_use_bfloat16_in_attention() -> None:
    assert RELATIVE_RATES.keys() == set(PRODUCT_LEVELS)
    attention = {level: rates(1e9, level)["bfloat16_attention"].value / 1e9 for level in RELATIVE_RATES}
    assert attention == dict.fromkeys(RELATIVE_RATES, 1.0) | {"avx512_bf16": 2.0}


def forms(memory_gib: float = 24, context: int = 8192) -> dict[tuple[Precision, CpuMath], PlannedCpuForm]:
    plan = plan_cpu(PUBLISHED_CONFIG, machine(memory_gib), context, CPU_PRECISIONS)
    return {(form.precision, form.math): form for form in plan.forms}


def test_every_precision_has_both_forms_and_every_form_the_context_asked_for() -> None:
    found = forms(context=10_000)
    assert found.keys() == {(precision, math) for precision in CPU_PRECISIONS for math in CpuMath}
    assert all(10_000 in [row.context for row in form.rows] for form in found.values())


def test_caches_take_16_bits_in_the_fast_form_and_32_in_the_exact_one() -> None:
    found = forms(context=1 << 20)
    row = {math: found[Precision.INT4, math].rows[-1] for math in CpuMath}
    states = 24 * HEADS * DIM * DIM * 4
    tokens = 1 << 20
    compressed = (tokens - 32) // 16 + 1 + (tokens - 128) // 64 + 1
    numbers = 8 * KV_HEADS * DIM * (2 * tokens + compressed)
    assert row[CpuMath.FAST].caches_bytes == pytest.approx(states + 2 * numbers, rel=1e-4)
    assert row[CpuMath.EXACT].caches_bytes == pytest.approx(states + 4 * numbers, rel=1e-4)


def test_decode_reads_the_weights_once_at_a_share_of_the_bandwidth() -> None:
    """bf16: 17.65 GiB but the embedding, whose one row counts for nothing, and little else at a short context."""
    row = forms()[Precision.BF16, CpuMath.FAST].rows[0]
    read = forms()[Precision.BF16, CpuMath.FAST].weights_bytes - 2 * VOCABULARY * HIDDEN
    assert row.decode_tokens_per_second == pytest.approx(0.79 * 40e9 / read, rel=0.02)


def test_a_long_prompt_takes_its_products_at_a_share_of_the_rate() -> None:
    """17.75 GFLOP of products for each token (docs/plan.md), at 0.73 of 200 GFLOP/s in the exact form."""
    found = forms(context=4096)
    exact = found[Precision.BF16, CpuMath.EXACT].rows[0]
    products = 4096 * 17.75e9 / (0.73 * 200e9)
    assert products < exact.prefill_seconds < 1.15 * products
    fast = found[Precision.BF16, CpuMath.FAST].rows[0].prefill_seconds
    faster = found[Precision.INT4, CpuMath.FAST].rows[0].prefill_seconds
    assert exact.prefill_seconds > 1.6 * fast > 2 * faster


@pytest.mark.parametrize("memory_gib", [8, 12, 16, 24])
@pytest.mark.parametrize("math", CpuMath)
@pytest.mark.parametrize("precision", CPU_PRECISIONS)
def test_largest_context_fits_and_a_larger_one_does_not(precision: Precision, math: CpuMath, memory_gib: float) -> None:
    largest = forms(memory_gib)[precision, math].largest_context
    memory = memory_gib * GIB
    assert needed_bytes(Sala.in_precision(PUBLISHED_CONFIG, precision), precision, math, (largest or 0) + 1024) > memory
    if largest is not None:
        assert needed_bytes(Sala.in_precision(PUBLISHED_CONFIG, precision), precision, math, largest) <= memory


def test_needs_say_what_fits() -> None:
    found = {need.precision: need.fits for need in needs(PUBLISHED_CONFIG, 12 * GIB, 8192)}
    assert found == {Precision.BF16: False} | dict.fromkeys(CPU_PRECISIONS[1:], True)


def test_precision_is_checked_by_name() -> None:
    assert cpu_precisions(None) == CPU_PRECISIONS
    assert cpu_precisions("INT4") == (Precision.INT4,)
    with pytest.raises(RequestError, match="--precision int3: unknown, use one of bf16, fp16"):
        cpu_precisions("int3")


def test_what_is_not_given_is_measured() -> None:
    found = this_machine(memory_bytes=16 * GIB, bytes_per_second=5e9)
    assert found.memory_bytes == Figure(value=16 * GIB, source=Source.GIVEN)
    assert found.bytes_per_second == Figure(value=5e9, source=Source.GIVEN)
    measured = this_machine()
    assert measured.memory_bytes.source is measured.bytes_per_second.source is Source.MEASURED
    assert 1e8 < measured.bytes_per_second.value < 1e13
    assert measured.operations_per_second["float32"].source is Source.MEASURED
    assert 1e8 < measured.operations_per_second["float32"].value < 1e15


def test_more_memory_and_bandwidth_are_never_worse() -> None:
    little = plan_cpu(PUBLISHED_CONFIG, machine(8, 20), 8192, CPU_PRECISIONS).forms
    much = plan_cpu(PUBLISHED_CONFIG, machine(64, 80), 8192, CPU_PRECISIONS).forms
    for less, more in zip(little, much, strict=True):
        assert (less.largest_context or 0) < (more.largest_context or 0)
        for a, b in zip(less.rows, more.rows, strict=True):
            assert a.decode_tokens_per_second < b.decode_tokens_per_second
            assert a.prefill_seconds >= b.prefill_seconds
            assert a.fits <= b.fits


@pytest.mark.parametrize("include_gates", [False, True])
def test_weights_of_a_quantised_checkpoint_take_what_they_take_on_a_gpu(include_gates: bool) -> None:
    quantization = Quantization.default(Precision.MXFP8, include_gates=include_gates)
    (form, _) = plan_cpu(PUBLISHED_CONFIG, machine(64), 8192, [Precision.MXFP8], quantization).forms
    on_gpu = planned_graph(PUBLISHED_CONFIG, Precision.MXFP8, quantization).weights_bytes
    assert form.weights_bytes == pytest.approx(on_gpu, rel=1e-6)
