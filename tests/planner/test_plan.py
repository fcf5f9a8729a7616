"""What is planned against what is built, and against what is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.bundles import tiny_bundle
from support.checkpoints import tiny_checkpoint

from sala_export.building.planned_graph import planned_graph, planned_memory
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.presets import PRESETS
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.memory import PARTIAL_SUM_BYTES
from sala_export.engine.recipe import Target, load_recipe, load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import RequestError, UnsupportedError
from sala_export.planner.plan import GpuPlan, Plan, baseline_row, fit_sentence, make_plan, published_checks
from sala_export.planner.plot import draw
from sala_export.planner.published import CONTEXTS, QWEN3_8B, TTFT_SECONDS
from sala_export.plotting import plot_file

NINE = PRESETS["9b"].config


def request(gpu: str, **options: int) -> EngineRequest:
    return EngineRequest.from_options(load_target(gpu), **options)


def only(plan: Plan) -> GpuPlan:
    (gpu,) = plan.gpus
    return gpu


@pytest.mark.parametrize("gpu", ["rtx", "a6000"])
def test_planned_memory_is_that_of_the_built_engine(gpu: str) -> None:
    manifest = Bundle.open(tiny_bundle(gpu)).manifest
    config = Checkpoint.open(tiny_checkpoint()).config
    engine = request(manifest.engine.target, max_context=16384, prefill_chunk=1024)
    planned = planned_memory(planned_graph(config, engine.precision), config, engine)
    built = manifest.engine.device_memory_bytes
    # The estimate of activations allows for the partial sums of a matrix product, which TensorRT does not always need.
    assert 0 <= planned.activation_bytes - built["activation"] <= PARTIAL_SUM_BYTES
    assert 0 <= built["weights"] - planned.weights_bytes < 1024, "scalars of the arithmetic"
    exact = ("key_value", "compressed_key", "state", "io")
    assert [planned.parts()[part] for part in exact] == [built[part] for part in exact]


def test_published_pattern_of_memory_is_reproduced() -> None:
    """Where the dense model runs out, and that SALA never does from 64K to 1M."""
    for row in TTFT_SECONDS:
        recipe = load_recipe(row.recipe)
        dense = [baseline_row(QWEN3_8B, recipe, context, row.weights).fits for context in CONTEXTS]
        assert dense == [seconds is not None for seconds in row.qwen3_8b], (row.recipe, row.weights)
    for gpu in ("rtx5090", "a6000d"):
        rows = only(make_plan(NINE, request(gpu), None, is_published=True)).rows
        assert [row.context for row in rows] == list(CONTEXTS)
        assert all(row.fits for row in rows)


def test_int4_stands_beside_its_published_figures_and_other_quantised_types_beside_none() -> None:
    (published,) = [row.sala for row in TTFT_SECONDS if (row.recipe, row.weights) == ("rtx5090", "int4")]
    int4 = EngineRequest.from_options(load_target("rtx5090"), precision="int4")
    assert (
        tuple(row.published_prefill for row in only(make_plan(NINE, int4, None, is_published=True)).rows) == published
    )
    fp8 = EngineRequest.from_options(load_target("rtx5090"), precision="fp8")
    assert {row.published_prefill for row in only(make_plan(NINE, fp8, None, is_published=True)).rows} == {None}


def test_plan_of_9b_in_every_precision_of_the_rtx5090() -> None:
    plans = {
        precision: make_plan(
            NINE, EngineRequest.from_options(load_target("rtx5090"), precision=precision), None, is_published=False
        )
        for precision in ("bf16", "fp8", "mxfp8", "int8", "int4", "nvfp4")
    }
    weights = {precision: plan.memory.weights_bytes / 1e9 for precision, plan in plans.items()}
    # 8.338e9 weights of projections, 1.139e9 others in 16 bits; and scales. mxfp8 has the 0.537e9 of the gates too.
    assert weights == pytest.approx(
        {"bf16": 18.954, "fp8": 10.616, "mxfp8": 10.357, "int8": 10.616, "int4": 6.577, "nvfp4": 6.968}, rel=1e-3
    )
    seconds = [only(plans[p]).rows[-1].prefill.predicted for p in ("int4", "bf16", "fp8", "int8", "mxfp8", "nvfp4")]
    assert seconds == sorted(seconds, reverse=True), "weights in int4 alone do not make a prompt faster"
    steps = [only(plans[p]).rows[-1].decode.predicted for p in ("bf16", "fp8", "nvfp4", "int4")]
    assert steps == sorted(steps, reverse=True)


def test_build_of_9b_is_predicted_in_every_precision() -> None:
    builds = {
        precision: make_plan(
            NINE, EngineRequest.from_options(load_target("rtx5090"), precision=precision), None, is_published=False
        ).build
        for precision in ("bf16", "fp8", "mxfp8", "int8", "int4", "nvfp4")
    }
    for precision in ("bf16", "fp8", "mxfp8", "int8"):
        assert builds[precision].plan_bytes < 60e6, "code alone"
        assert builds[precision].host_bytes <= 1 << 30
        assert builds[precision].scratch_bytes == 0
    assert 521e6 < builds["nvfp4"].plan_bytes < 700e6
    assert builds["int4"].scratch_bytes == pytest.approx(8.338e9 * (4 + 16 / 128) / 8, rel=1e-3)
    seconds = {precision: build.seconds_predicted for precision, build in builds.items()}
    assert seconds["int4"] > 3 * seconds["nvfp4"] > 3 * seconds["fp8"]


def test_time_of_the_dense_model_is_near_the_published_one() -> None:
    """The efficiency of its kernels comes from these figures of one GPU; the other is the check."""
    for row in TTFT_SECONDS:
        for context, seconds in zip(CONTEXTS, row.qwen3_8b, strict=True):
            if seconds is not None and row.weights == "bf16":
                predicted = baseline_row(QWEN3_8B, load_recipe(row.recipe), context).prefill.predicted
                assert predicted == pytest.approx(seconds, rel=0.15), (row.recipe, context)


def test_all_ten_published_figures_of_sala_are_checked() -> None:
    checks = published_checks(NINE)
    assert [(check.gpu, check.context) for check in checks] == [
        (gpu, context) for gpu in ("rtx5090", "a6000d") for context in CONTEXTS
    ]
    for check in checks:
        assert check.estimate.floor < check.published, "nothing is published that beats the floor"
        assert check.ratio == check.estimate.predicted / check.published


def test_context_that_does_not_fit_is_told_with_the_largest_that_does() -> None:
    plan = make_plan(NINE, request("rtx4090", max_context=1 << 20), None, is_published=True)
    gpu = only(plan)
    assert not gpu.fits
    assert gpu.largest_context is not None
    largest = only(make_plan(NINE, request("rtx4090", max_context=gpu.largest_context), None, is_published=True))
    assert largest.fits
    assert largest.largest_context == gpu.largest_context
    beyond = request("rtx4090", max_context=gpu.largest_context + 1024)
    assert not only(make_plan(NINE, beyond, None, is_published=True)).fits
    assert "does not fit the NVIDIA GeForce RTX 4090; the largest that fits is" in fit_sentence(plan, gpu)


def test_gpu_that_holds_no_context_is_told_so() -> None:
    small = replace(load_recipe("rtx4090"), memory_bytes=12 << 30)
    plan = make_plan(NINE, EngineRequest.from_options(Target.of(small)), None, is_published=False)
    assert only(plan).largest_context is None
    assert "nor does any other: all but the caches takes 19.65 GiB of 12.00 GiB" in fit_sentence(plan, only(plan))
    assert plan.checks == ()
    assert all(row.published_prefill is None for row in only(plan).rows)


def test_plan_of_several_gpus_is_that_of_each() -> None:
    plan = make_plan(NINE, request("rtx4090,rtx5090", max_context=1 << 20), "qwen3-8b", is_published=True)
    assert [gpu.fits for gpu in plan.gpus] == [False, True]
    for gpu in plan.gpus:
        alone = make_plan(NINE, request(gpu.recipe.name, max_context=1 << 20), "qwen3-8b", is_published=True)
        assert only(alone) == gpu
        assert alone.memory == plan.memory


def test_unknown_baseline_is_refused() -> None:
    with pytest.raises(RequestError, match=r"--compare llama: unknown model, known are qwen3-8b"):
        make_plan(NINE, request("rtx5090"), "llama", is_published=True)


@pytest.mark.parametrize("compare", [None, "qwen3-8b"])
@pytest.mark.parametrize("gpu", ["rtx5090", "rtx4090", "rtx"])
def test_picture_is_written(tmp_path: Path, gpu: str, compare: str | None) -> None:
    path = tmp_path / "plan.svg"
    with plot_file(path) as save:
        assert save is not None
        save(draw(make_plan(NINE, request(gpu), compare, is_published=True)))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert len(text) > 10_000


def test_picture_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(UnsupportedError, match=r"--plot needs matplotlib: pip install matplotlib"),
        plot_file(tmp_path / "plan.png"),
    ):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []


def test_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "plan.png").mkdir()
    with pytest.raises(RequestError, match="is not a file"), plot_file(tmp_path / "plan.png"):
        pytest.fail("the work began")
