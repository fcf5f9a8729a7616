"""The limits of the shipped code: a figure worked out by hand, and what the command prints and refuses."""

from __future__ import annotations

import pytest

from benchmarks.kernel_cases import published_cases
from benchmarks.kernel_code import OPERATIONS_PER_CYCLE, limits_of, main
from sala_export.engine.recipe import load_recipe, recipe_paths
from sala_export.ops.common.targets import serving_architecture

CASE = next(case for case in published_cases() if case.name == "InfLLM-v2, dense prompt of 8064")


@pytest.mark.parametrize(("gpu", "multiprocessors", "boost_gigahertz"), [("rtx5090", 170, 2.407), ("a6000", 84, 1.8)])
def test_rate_of_a_multiprocessor_is_that_of_the_published_peak(
    gpu: str, multiprocessors: int, boost_gigahertz: float
) -> None:
    recipe = load_recipe(gpu)
    operations = OPERATIONS_PER_CYCLE[serving_architecture(recipe.compute_capability)]
    peak = operations * multiprocessors * boost_gigahertz * 1e9
    assert peak == pytest.approx(recipe.peak_tera_operations_per_second["bf16"] * 1e12, rel=0.01)


def test_limits_are_those_of_the_loop() -> None:
    (attend,) = (one for one in limits_of(CASE, "a6000") if one.report.shipped.kernel == "infllmv2_attend_kernel")
    # 8 warps of 128 instructions of 16 x 8 x 16, on tensor cores that take 1024 operations in a cycle.
    assert attend.tensor_cycles == 8 * 128 * 2 * 16 * 8 * 16 / 1024
    assert attend.issue_cycles == min(attend.report.facts.loop_instructions) * 8 / 4
    assert attend.issue_cycles > 8 * 128 / 4
    ratio = attend.seconds["issue"] / attend.seconds["tensor cores"]
    assert ratio == pytest.approx(attend.issue_cycles / attend.tensor_cycles)
    assert attend.binding == "tensor cores"


def test_products_of_int8_have_a_line_of_their_own_and_one_with_the_sum() -> None:
    case = next(case for case in published_cases() if case.name == "InfLLM-v2, last 8K of 1M")
    wide, int8, both = (
        one for one in limits_of(case, "rtx5090") if one.report.shipped.kernel == "infllmv2_select_kernel"
    )
    # 128 keys x 128 rows x 128 channels, four times as fast as 512 operations in a cycle.
    assert (wide.tensor_cycles, int8.tensor_cycles) == (2 * 128**3 / 512, 2 * 128**3 / 2048)
    assert int8.issue_cycles == min(int8.report.facts.int8_loop_instructions) * 8 / 4
    for limit in ("tensor cores", "issue"):
        assert both.seconds[limit] == wide.seconds[limit] + int8.seconds[limit]
    assert wide.seconds.keys() == int8.seconds.keys() == {"tensor cores", "issue"}
    assert both.binding == "tensor cores"


def test_every_architecture_with_a_recipe_has_a_rate() -> None:
    served = {serving_architecture(load_recipe(name).compute_capability) for name in recipe_paths()}
    assert served <= OPERATIONS_PER_CYCLE.keys()


def test_command_prints_the_loops_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--call", "Lightning, chunk of 8K", "--gpu", "h100"]) == 0
    assert "| `lightning_prefill_kernel` | h100 |" in capsys.readouterr().out
    assert main(["--call", "Lightning"]) == 2
    assert "Lightning: no published call, there are: Lightning, chunk of 8K;" in capsys.readouterr().err
