"""The plugin library on a real GPU, as TensorRT uses it: `enqueue`, and `enqueue` captured in a CUDA graph.

    python -m pytest -m gpu --require gpu tests/plugins/test_plugin_gpu.py

Where TensorRT's headers cannot be had, `--plugin-driver PATH` names the program that a machine with them has built
(scripts/gpu_pack.sh).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.findings import failed
from support.plugin_gpu import PluginProgram, Run, findings_of
from support.plugin_gpu_cases import GpuCase, lightning_decode, lightning_prefill, sparse_decode, sparse_prefill

pytestmark = pytest.mark.gpu

Maker = Callable[..., GpuCase]

VARIANTS = pytest.mark.parametrize(
    ("head_dim", "activation", "is_in_place"),
    [(128, "bfloat16", True), (128, "bfloat16", False), (128, "float16", True), (64, "bfloat16", True)],
)


def require(case: GpuCase, run: Run) -> None:
    """Fail with one line that names every tensor that is too far from the reference."""
    if problems := failed(findings_of(case.call, case.steps, run)):
        pytest.fail(problems, pytrace=False)


@VARIANTS
@pytest.mark.parametrize("make", [lightning_prefill, sparse_prefill])
def test_enqueue_gives_the_reference(
    real_program: PluginProgram, make: Maker, head_dim: int, activation: str, is_in_place: bool
) -> None:
    case = make(head_dim=head_dim, activation=activation, is_in_place=is_in_place)
    run = real_program.run(case.call, case.steps, is_captured=False)
    require(case, run)


@VARIANTS
@pytest.mark.parametrize("make", [lightning_decode, sparse_decode])
def test_enqueue_captured_once_gives_the_reference_at_every_position(
    real_program: PluginProgram, make: Maker, head_dim: int, activation: str, is_in_place: bool
) -> None:
    case = make(head_dim=head_dim, activation=activation, is_in_place=is_in_place)
    run = real_program.run(case.call, case.steps, is_captured=True)
    require(case, run)
    copies = 0 if is_in_place else sum(bool(tensor.updates) for tensor in case.call.contract.outputs)
    assert run.nodes == len(case.call.sequence) + copies
