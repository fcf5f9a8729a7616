"""The predictions in `benchmarks/expected/`: of what is measured, and possible."""

from __future__ import annotations

import pytest
from support.made_up_figures import ROOT

from benchmarks.expectations import Comparison, Place, read_expectations
from benchmarks.gpu_machine import known_gpus, rates_of
from benchmarks.kernel_cases import published_cases
from benchmarks.kernel_measure import OPERATOR, OPERATOR_GRAPH, account, least_seconds
from benchmarks.kernel_peers import peer_name
from sala_export.checkpoint.presets import PRESETS
from sala_export.ops.common.targets import require_architecture
from sala_export.planner.roofline import WEIGHT_BITS, bounded_blocks, time_of_decode, time_of_prefill
from sala_export.planner.work import Sala
from sala_export.specs import DType, parse_tokens


def least_times(gpu: str) -> dict[tuple[str, str], float]:
    """The least that everything measured can take on a GPU, by call and what."""
    rates, found = rates_of(gpu), {}
    for case in published_cases():
        costs, floor = account(case, DType.BFLOAT16, require_architecture(rates.compute_capability))
        found |= {(case.name, cost.kernel): least_seconds(cost, rates, DType.BFLOAT16) for cost in costs}
        least = case.calls * least_seconds(floor, rates, DType.BFLOAT16)
        found |= {(case.name, what): least for what in (OPERATOR, OPERATOR_GRAPH, peer_name(case))}
    config = PRESETS["9b"].config
    for context in ("128K", "1M"):
        for precision, bits in WEIGHT_BITS.items():
            decode = Sala(config).decode(parse_tokens(context), bits)
            call = f"prompt of {context}"
            found[call, f"each further token, {precision}"] = time_of_decode(
                decode, config.num_hidden_layers, rates
            ).floor
            if precision in rates.peak_tera_operations_per_second:
                prefill = Sala(config).prefill(
                    parse_tokens(context), rates.default_prefill_chunk, bits, bounded_blocks=bounded_blocks(rates)
                )
                found[call, f"first token, {precision}"] = time_of_prefill(prefill, rates, precision).floor
    return found


@pytest.mark.parametrize("gpu", sorted({place.gpu for place in read_expectations(ROOT).seconds}))
def test_predictions_are_of_what_is_measured_and_above_its_least_time(gpu: str) -> None:
    """A wrong name or unit would be far off. One was predicted below its least time, and says so beside it."""
    least = least_times(gpu)
    predicted = {p[1:]: seconds for p, seconds in read_expectations(ROOT).seconds.items() if p.gpu == gpu}
    assert predicted.keys() <= least.keys()
    assert gpu in known_gpus()
    assert {place: s / least[place] for place, s in predicted.items() if not 0.85 <= s / least[place] <= 11} == {}


def test_border_of_a_third_holds_for_figures_that_are_no_exact_halves() -> None:
    place = Place("x", "y", "z")
    for predicted in (0.3, 0.7e-6, 1.1e-3):
        for border in (4 / 3, 3 / 4):
            assert not Comparison(place=place, seconds=predicted * border, predicted=predicted).is_far
            nudge = 1.001 if border > 1 else 0.999
            assert Comparison(place=place, seconds=predicted * border * nudge, predicted=predicted).is_far
