"""Engine requests: defaults from the recipe, and every contradiction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sala_export.engine.recipe import load_recipe
from sala_export.engine.request import EngineRequest, require_precision
from sala_export.errors import RequestError, UnsupportedError
from sala_export.specs import Precision


def test_request_takes_from_the_recipe_what_is_not_given() -> None:
    recipe = load_recipe("rtx4090")
    request = EngineRequest.from_options(recipe)
    assert (request.max_context, request.prefill_chunk) == (recipe.default_max_context, recipe.default_prefill_chunk)
    assert (request.precision, request.max_batch) == (Precision.BF16, 1)


def test_default_chunk_gives_way_to_a_smaller_context() -> None:
    request = EngineRequest.from_options(load_recipe("rtx4090"), max_context=1000)
    assert request.prefill_chunk == 1000


def test_chunk_that_was_asked_for_does_not_give_way() -> None:
    with pytest.raises(RequestError, match=r"--prefill-chunk 2K is larger than --max-context 1000"):
        EngineRequest.from_options(load_recipe("rtx4090"), max_context=1000, prefill_chunk=2048)


@pytest.mark.parametrize("field", ["max_context", "prefill_chunk", "max_batch"])
def test_size_below_one_names_its_option(field: str) -> None:
    sizes = {"max_context": 8, "prefill_chunk": 8, "max_batch": 8, field: 0}
    with pytest.raises(RequestError, match=rf"--{field.replace('_', '-')} 0: expected at least 1"):
        EngineRequest.from_options(load_recipe("a6000"), **sizes)  # type: ignore[arg-type]


def test_fp8_on_a6000_says_that_the_gpu_has_none() -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"--precision fp8: NVIDIA RTX A6000 \(SM86\) has no FP8, it runs .*int8, int4; use --precision bf16",
    ) as error:
        EngineRequest.from_options(load_recipe("a6000"), precision="fp8")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("precision", ["fp8", "nvfp4", "fp32"])
def test_precision_that_is_not_built_yet_says_so(precision: str) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"--precision {precision}: .* this release builds engines in bf16, fp16 only"
    ):
        EngineRequest.from_options(load_recipe("rtx5090"), precision=precision)


def test_precision_is_checked_however_the_request_is_made() -> None:
    with pytest.raises(UnsupportedError, match=r"fp32"):
        replace(EngineRequest.from_options(load_recipe("rtx5090")), precision=Precision.FP32)


def test_recipe_without_a_built_precision_offers_another_gpu() -> None:
    recipe = replace(load_recipe("a6000"), precisions=("int8",))
    with pytest.raises(UnsupportedError, match=r"has no BF16, it runs int8; choose another --gpu"):
        require_precision("bf16", recipe)
