"""The engine on the GPU that it was built for, against the CPU runtime on the same bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import tiny_bundle

import sala_export
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.engine.recipe import GpuRecipe, load_recipe
from sala_export.runtime.model import Model
from sala_export.specs import ComputeCapability

pytestmark = pytest.mark.gpu

RECIPES = ("rtx5090", "a6000", "rtx4090")
TOLERANCE = 5e-2
"""Of the largest logit: bf16 activations through five layers against fp32, each rounding at most 2^-9 of its value."""
SAME_ENGINE = 2e-2
"""Of the largest logit, for the same tokens in other chunks: other row counts sum in another order, rounded to bf16."""


def recipe_of_this_gpu(config: pytest.Config) -> GpuRecipe:
    present = ComputeCapability(*torch.cuda.get_device_capability())
    for recipe in map(load_recipe, RECIPES):
        if recipe.compute_capability == present:
            return recipe
    reason = f"no CUDA device that engines are built for: {torch.cuda.get_device_name()} is {present}"
    if "gpu" in config.getoption("--require"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module", params=["one GPU", "every GPU"])
def bundle(request: pytest.FixtureRequest) -> Path:
    recipe = recipe_of_this_gpu(request.config)
    return tiny_bundle(recipe.name if request.param == "one GPU" else "rtx")


@pytest.fixture(scope="module")
def gpu(bundle: Path) -> Model:
    return sala_export.load(bundle, runtime="tensorrt")


@pytest.fixture(scope="module")
def cpu(bundle: Path) -> Model:
    return sala_export.load(bundle, runtime="onnxruntime")


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 512, count)


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_auto_takes_the_gpu(bundle: Path) -> None:
    llm = sala_export.load(bundle)
    assert (llm.runtime, llm.runtime_reason, llm.precision) == ("tensorrt", "", "bf16")


# 511 is the longest dense context of the tiny model; from 1403 rows on they choose blocks.
@pytest.mark.parametrize("tokens", [1, 63, 64, 511, 512, 1403])
def test_prefill_agrees_with_the_cpu(gpu: Model, cpu: Model, tokens: int) -> None:
    prompt = ids(tokens)
    expected = cpu.session(max_context=2048).prefill(prompt)
    assert_near(gpu.session(max_context=2048).prefill(prompt), expected, TOLERANCE)


def test_graph_replays_at_many_positions(gpu: Model, cpu: Model, bundle: Path) -> None:
    """Across the border of dense and sparse, and against steps that no graph replays."""
    prompt = ids(700, seed=1)
    direct = sala_export.load(bundle, runtime="tensorrt", decode_graph=False)
    replayed, enqueued, expected = (llm.session(max_context=1024) for llm in (gpu, direct, cpu))
    for session in (replayed, enqueued, expected):
        session.prefill(prompt[:480])
    for position in range(480, 700):
        step = prompt[position : position + 1]
        actual, plain, wanted = (session.prefill(step) for session in (replayed, enqueued, expected))
        np.testing.assert_array_equal(actual, plain)
        assert_near(actual, wanted, TOLERANCE)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1000])
def test_chunks_do_not_change_logits(gpu: Model, chunk_tokens: int) -> None:
    prompt = ids(1100, seed=2)
    whole = gpu.session(max_context=2048, chunk_tokens=1024).prefill(prompt, context_length=1100)
    parts = gpu.session(max_context=1100, chunk_tokens=chunk_tokens).prefill(prompt, context_length=1100)
    assert_near(parts, whole, SAME_ENGINE)


def test_restored_session_continues_with_exactly_the_same_logits(gpu: Model, tmp_path: Path) -> None:
    prompt = ids(700, seed=3)
    session = gpu.session(max_context=2048)
    session.prefill(prompt[:600])
    session.save(tmp_path / "a.state")
    restored = gpu.restore(tmp_path / "a.state", max_context=2048)
    np.testing.assert_array_equal(restored.prefill(prompt[600:]), session.prefill(prompt[600:]))


def test_reset_session_equals_a_new_one(gpu: Model) -> None:
    session = gpu.session(max_context=1024)
    expected = session.prefill(ids(90))
    session.prefill(ids(50, seed=9))
    session.reset()
    np.testing.assert_array_equal(session.prefill(ids(90)), expected)


def test_sessions_in_turn_do_not_touch_each_other(gpu: Model) -> None:
    prompt = ids(120, seed=4)
    reference, first, second = (gpu.session(max_context=1024, chunk_tokens=60) for _ in range(3))
    expected = reference.prefill(prompt)
    first.prefill(prompt[:60], context_length=120)
    second.prefill(ids(77, seed=5))
    np.testing.assert_array_equal(first.prefill(prompt[60:]), expected)


def test_runtime_cache_is_written_and_read_again(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    for _ in range(2):
        llm = sala_export.load(bundle, runtime="tensorrt", runtime_cache=cache)
        llm.session(max_context=1024).prefill(ids(100))
        assert cache.stat().st_size > 0


def test_other_weights_agree_with_the_cpu(bundle: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "other", "tiny", seed=1)
    prompt = ids(600, seed=6)
    swapped, expected = (
        sala_export.load(bundle, runtime=runtime, weights=tmp_path / "other") for runtime in ("tensorrt", "onnxruntime")
    )
    assert swapped.fingerprint == expected.fingerprint
    assert_near(swapped.session().prefill(prompt), expected.session().prefill(prompt), TOLERANCE)
