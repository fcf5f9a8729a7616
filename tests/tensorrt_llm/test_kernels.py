"""The mixers on TensorRT-LLM's caches with this project's kernels, interpreted, and on a GPU, where there is one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from support.closeness import assert_close
from support.small_models import write_small_checkpoint
from support.tensorrt_llm_mixers import mixer_results
from support.torch_sessions import SPARSE
from support.triton_interpreter import call_interpreting


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "checkpoint"
    return write_small_checkpoint(path, ("lightning-attn", "minicpm4"), sparse_config=SPARSE, head_dim=32)


@pytest.mark.parametrize("device", ["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_give_what_the_reference_gives_on_the_same_pages(checkpoint: Path, device: str) -> None:
    expected = mixer_results(checkpoint, kernels=False)
    if device == "interpreter":
        actual = call_interpreting(partial(mixer_results, checkpoint, kernels=True))
    else:
        actual = mixer_results(checkpoint, kernels=True, device=device)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


def test_results_are_no_zeros(checkpoint: Path) -> None:
    assert all((rows.abs().amax(1) > 0).all() for rows in mixer_results(checkpoint, kernels=False))
