"""Engine requests: defaults from the recipe, and every contradiction."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sala_export.engine.recipe import Target, load_recipe, load_target
from sala_export.engine.request import EngineRequest, require_precision
from sala_export.errors import RequestError, UnsupportedError
from sala_export.specs import BUILT_PRECISIONS, DType, Precision


def test_request_takes_from_the_recipe_what_is_not_given() -> None:
    recipe = load_recipe("rtx4090")
    request = EngineRequest.from_options(Target.of(recipe))
    assert (request.max_context, request.prefill_chunk) == (recipe.default_max_context, recipe.default_prefill_chunk)
    assert (request.precision, request.max_batch) == (Precision.BF16, 1)


def test_default_chunk_gives_way_to_a_smaller_context() -> None:
    request = EngineRequest.from_options(load_target("rtx4090"), max_context=1000)
    assert request.prefill_chunk == 1000


def test_chunk_that_was_asked_for_does_not_give_way() -> None:
    with pytest.raises(RequestError, match=r"--prefill-chunk 2K is larger than --max-context 1000"):
        EngineRequest.from_options(load_target("rtx4090"), max_context=1000, prefill_chunk=2048)


@pytest.mark.parametrize("field", ["max_context", "prefill_chunk", "max_batch"])
def test_size_below_one_names_its_option(field: str) -> None:
    sizes = {"max_context": 8, "prefill_chunk": 8, "max_batch": 8, field: 0}
    with pytest.raises(RequestError, match=rf"--{field.replace('_', '-')} 0: expected at least 1"):
        EngineRequest.from_options(load_target("a6000"), **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "precision", "best"),
    [
        ("a6000", "fp8", "int8"),
        ("a6000", "nvfp4", "int8"),
        ("rtx4090", "nvfp4", "fp8"),
        ("rtx5090", "fp4", "bf16"),
        ("rtx5090", "w8a8", "bf16"),
    ],
)
def test_precision_that_the_gpu_lacks_is_refused_with_the_best_it_has(gpu: str, precision: str, best: str) -> None:
    recipe = load_recipe(gpu)
    expected = re.escape(
        f"--precision {precision}: {recipe.gpu} ({recipe.compute_capability.sm}) has no {precision.upper()}, it runs "
        f"{', '.join(recipe.precisions)}; use --precision {best}"
    )
    with pytest.raises(UnsupportedError, match=f"^{expected}$") as error:
        EngineRequest.from_options(Target.of(recipe), precision=precision)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("gpu", "precisions"),
    [
        ("rtx5090", "bf16 fp16 fp8 mxfp8 int8 int4 nvfp4"),
        ("a6000d", "bf16 fp16 fp8 mxfp8 int8 int4 nvfp4"),
        ("rtx4090", "bf16 fp16 fp8 int8 int4"),
        ("a6000", "bf16 fp16 int8 int4"),
    ],
)
def test_recipes_say_what_is_built_for_each_gpu(gpu: str, precisions: str) -> None:
    recipe = load_recipe(gpu)
    assert [each for each in BUILT_PRECISIONS if each in recipe.precisions] == precisions.split()
    for precision in precisions.split():
        request = EngineRequest.from_options(Target.of(recipe), precision=precision)
        assert request.precision.dtype is (DType.FLOAT16 if precision == "fp16" else DType.BFLOAT16)


def test_several_gpus_take_the_largest_context_and_the_smallest_chunk() -> None:
    small = replace(load_recipe("rtx4090"), default_prefill_chunk=2048)
    target = Target(name="both", gpus=(small, load_recipe("rtx5090")))
    request = EngineRequest.from_options(target)
    assert (request.max_context, request.prefill_chunk) == (1 << 20, 2048)


@pytest.mark.parametrize(
    ("gpus", "precision", "message"),
    [
        (
            "rtx",
            "nvfp4",
            "NVIDIA RTX A6000 (SM86) and NVIDIA GeForce RTX 4090 (SM89) have no NVFP4; use --precision int8, or --gpu "
            "rtx5090,a6000d",
        ),
        (
            "rtx5090,a6000",
            "fp8",
            "NVIDIA RTX A6000 (SM86) has no FP8, it runs fp32, bf16, fp16, int8, int4; use --precision int8, or --gpu "
            "rtx5090",
        ),
        (
            "a6000,rtx4090,rtx5090",
            "fp4",
            "NVIDIA RTX A6000 (SM86), NVIDIA GeForce RTX 4090 (SM89) and NVIDIA GeForce RTX 5090 (SM120) have no FP4; "
            "use --precision bf16",
        ),
    ],
)
def test_precision_that_some_gpus_lack_names_them_and_what_can_be_done(gpus: str, precision: str, message: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        EngineRequest.from_options(load_target(gpus), precision=precision)
    assert str(error.value) == f"--precision {precision}: {message}"


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "int4"])
def test_every_rtx_card_runs_these(precision: str) -> None:
    assert EngineRequest.from_options(load_target("rtx"), precision=precision).precision == precision


def test_precision_that_is_not_built_says_so() -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"--precision fp32: this release builds engines in bf16, fp16, .* only; use --precision bf16",
    ):
        EngineRequest.from_options(load_target("rtx5090"), precision="fp32")


def test_precision_is_checked_however_the_request_is_made() -> None:
    with pytest.raises(UnsupportedError, match=r"fp32"):
        replace(EngineRequest.from_options(load_target("rtx5090")), precision=Precision.FP32)


def test_recipe_without_a_built_precision_offers_another_gpu() -> None:
    recipe = replace(load_recipe("a6000"), precisions=("fp32",))
    with pytest.raises(UnsupportedError, match=r"has no BF16, it runs fp32; choose another --gpu"):
        require_precision("bf16", Target.of(recipe))
