"""The simulated fleet: least numbers of GPUs against a count by hand, and fleets that cannot keep up."""

from __future__ import annotations

import pytest

from benchmarks import fleet_simulation
from benchmarks.fleet_simulation import ANSWER_TOKENS, BATCH, CONTEXTS, QUESTION_TOKENS, Model, least, simulate
from sala_export.specs import Precision


@pytest.fixture(scope="module")
def model() -> Model:
    return Model("rtx5090", Precision.FP8)


def test_least_number_is_what_the_work_of_all_turns_needs(model: Model) -> None:
    options = fleet_simulation.parsed(["--users", "1000", "--gpus", "1"])
    fleet = least(model, options, is_affine=False, has_store=True)
    assert fleet is not None
    fewer = simulate(model, options, fleet.gpus - 1, is_affine=False, has_store=True)
    assert max(fleet.busy, fleet.linked) <= 0.7 < max(fewer.busy, fewer.linked)
    # Nearly all states come from the store, and a user asks once in the time to think and to answer.
    reading = sum(share * (model.read(n + QUESTION_TOKENS) - model.read(n)) for n, share in CONTEXTS.items())
    moving = sum(share * model.state_bytes(n) for n, share in CONTEXTS.items()) / options.network_rate
    rate = options.users / (options.think + ANSWER_TOKENS * model.step)
    busiest = max(reading + ANSWER_TOKENS * model.step / BATCH, moving)
    assert fleet.gpus == pytest.approx(rate * busiest / 0.7, rel=0.3)


def test_fewer_gpus_have_less_memory_for_states(model: Model) -> None:
    options = fleet_simulation.parsed(["--users", "1000", "--gpus", "7"])
    fleet = least(model, options, is_affine=True, has_store=True)
    assert fleet is not None
    assert fleet.gpus < 7
    many = simulate(model, options, 7, is_affine=True, has_store=True)
    assert fleet.stored > 10 * many.stored


def test_a_fleet_that_cannot_keep_up_says_so(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    # Without a store, 20 GPUs are just busy all the time, and answers come minutes late.
    assert fleet_simulation.main(["--users", "1000", "--gpus", "20"]) == 0
    given, searched = capsys.readouterr().out.split("The least number")
    assert "it cannot keep up" in given.splitlines()[-2]
    assert "it cannot keep up" not in searched
    # At 1 MB/s the smallest state takes five minutes, whatever the number of GPUs.
    options = fleet_simulation.parsed(["--users", "50", "--gpus", "8", "--think", "2", "--network-rate", "1e6"])
    assert least(model, options, is_affine=False, has_store=True) is None
