"""Models and GPUs that no shipped kernel serves, refused before an engine is built."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.checkpoints import tiny_checkpoint

from sala_export.building.kernel_support import operator_workspaces, require_kernels
from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.recipe import load_recipe, recipe_paths
from sala_export.errors import UnsupportedError
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.specs import BUILT_PRECISIONS, ComputeCapability, Precision


@pytest.fixture(scope="module")
def config() -> SalaConfig:
    """Heads of the size that kernels are shipped for."""
    return replace(Checkpoint.open(tiny_checkpoint()).config, head_dim=128)


@pytest.mark.parametrize("precision", BUILT_PRECISIONS)
@pytest.mark.parametrize("name", recipe_paths())
def test_shipped_recipes_are_served(config: SalaConfig, name: str, precision: Precision) -> None:
    require_kernels(config, precision, load_recipe(name).compute_capability)


@pytest.mark.parametrize(("major", "minor"), [(7, 5), (8, 0), (10, 0), (12, 1)])
def test_gpu_without_kernels_is_refused_with_those_that_have(config: SalaConfig, major: int, minor: int) -> None:
    with pytest.raises(UnsupportedError) as raised:
        require_kernels(config, Precision.BF16, ComputeCapability(major, minor))
    assert str(raised.value) == f"no kernels for SM{major}{minor}, they exist for SM86, SM89, SM90, SM120"


def test_model_without_kernels_is_refused_by_operator_and_size(config: SalaConfig) -> None:
    with pytest.raises(UnsupportedError, match="LightningAttention: head_dim = 96: kernels exist for head_dim = 64; "):
        require_kernels(replace(config, head_dim=96), Precision.BF16, ComputeCapability(12, 0))


def test_precision_without_kernels_is_refused(config: SalaConfig) -> None:
    with pytest.raises(UnsupportedError, match="activations are float32, kernels exist for bfloat16, float16"):
        require_kernels(config, Precision.FP32, ComputeCapability(12, 0))


def test_scratch_grows_with_the_chunk_and_counts_every_operator_of_the_model(config: SalaConfig) -> None:
    small, large = (
        operator_workspaces(config, Precision.BF16, batch=2, tokens=tokens, capacity=4096) for tokens in (64, 1024)
    )
    assert small.keys() == large.keys() == {"LightningAttention", "InfLLMv2Attention"}
    for name, size in small.items():
        assert 0 < size < large[name]
    assert all(kernel_set.workspaces for kernel_set in KERNEL_SETS.values())
