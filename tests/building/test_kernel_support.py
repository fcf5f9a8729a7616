"""Models and GPUs that no shipped kernel serves, refused before an engine is built."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.checkpoints import tiny_checkpoint

from sala_export.building.kernel_support import operator_workspaces, require_kernels
from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.recipe import load_target
from sala_export.errors import UnsupportedError
from sala_export.installation import plugin_library
from sala_export.model.mixers import MIXERS
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.specs import BUILT_PRECISIONS, ComputeCapability, Precision


@pytest.fixture(scope="module")
def config() -> SalaConfig:
    """Heads of the size that kernels are shipped for."""
    return replace(Checkpoint.open(tiny_checkpoint()).config, head_dim=128)


@pytest.mark.parametrize("precision", [each for each in BUILT_PRECISIONS if each is not Precision.MXFP8])
def test_every_rtx_card_is_served(config: SalaConfig, precision: Precision) -> None:
    for capability in load_target("rtx").compute_capabilities:
        require_kernels(config, precision, capability, plugin_library())


def test_block_scaled_products_need_their_tensor_cores(config: SalaConfig) -> None:
    require_kernels(config, Precision.MXFP8, ComputeCapability(12, 0), plugin_library())
    for capability in (ComputeCapability(8, 6), ComputeCapability(9, 0)):
        with pytest.raises(UnsupportedError) as raised:
            require_kernels(config, Precision.MXFP8, capability, plugin_library())
        assert str(raised.value) == f"no kernels of mxfp8 for {capability.sm}, they exist for SM120, SM121"


@pytest.mark.parametrize(("major", "minor"), [(7, 5), (8, 0), (10, 0), (12, 2)])
def test_gpu_without_kernels_is_refused_with_those_that_have(config: SalaConfig, major: int, minor: int) -> None:
    with pytest.raises(UnsupportedError) as raised:
        require_kernels(config, Precision.BF16, ComputeCapability(major, minor), plugin_library())
    served = "SM86, SM87, SM89, SM90, SM110, SM120, SM121"
    assert str(raised.value) == f"no kernels for SM{major}{minor}, they exist for {served}"


@pytest.mark.parametrize("sm", [87, 110, 121])
def test_gpu_whose_kernels_are_not_installed_is_refused_with_the_option_that_brings_them(
    config: SalaConfig, sm: int
) -> None:
    with pytest.raises(UnsupportedError) as raised:
        require_kernels(config, Precision.BF16, ComputeCapability(*divmod(sm, 10)), plugin_library())
    both = ",".join(map(str, sorted({86, 89, 90, 120, sm})))
    assert str(raised.value) == (
        f"the installed kernels are for SM86, SM89, SM90, SM120, not for SM{sm}: install with "
        f"scripts/install.sh --architectures {both} (docs/gpus.md)"
    )


def test_model_without_kernels_is_refused_by_operator_and_size(config: SalaConfig) -> None:
    with pytest.raises(UnsupportedError, match="LightningAttention: head_dim = 96: kernels exist for head_dim = 64; "):
        require_kernels(replace(config, head_dim=96), Precision.BF16, ComputeCapability(12, 0), plugin_library())


def test_precision_without_kernels_is_refused(config: SalaConfig) -> None:
    with pytest.raises(UnsupportedError, match="activations are float32, kernels exist for bfloat16, float16"):
        require_kernels(config, Precision.FP32, ComputeCapability(12, 0), plugin_library())


def test_scratch_grows_with_the_chunk_and_counts_every_operator_of_the_model(config: SalaConfig) -> None:
    small, large = (
        operator_workspaces(config, Precision.BF16, batch=2, tokens=tokens, capacity=4096) for tokens in (64, 1024)
    )
    assert small.keys() == large.keys() == {"LightningAttention", "InfLLMv2Attention"}
    for name, size in small.items():
        assert 0 < size < large[name]
    assert all(KERNEL_SETS[kind.contract.name].workspaces for kind in MIXERS.values())
