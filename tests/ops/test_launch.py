"""What the shipped kernels cannot serve is refused; what Python launches is the code that ships."""

from __future__ import annotations

from dataclasses import replace

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from plugins.aot.kernels import compile_job
from sala_export.ops.common.launch import Launch, unsupported_reason
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.ops.infllmv2_attention.schema import PUBLISHED as SPARSE
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import CONTRACTS


@pytest.mark.parametrize("head_dim", [64, 128])
def test_published_sizes_are_served(head_dim: int) -> None:
    kernels = KERNEL_SETS["infllmv2_attention"]
    assert unsupported_reason(kernels, {**SPARSE, "head_dim": head_dim}, "bfloat16") is None


@pytest.mark.parametrize(
    ("change", "dtype", "named"),
    [
        ({}, "float32", ["activations are float32", "bfloat16"]),
        ({"head_dim": 96}, "bfloat16", ["head_dim = 96", "head_dim = 64", "head_dim = 128"]),
        ({"block_size": 32}, "bfloat16", ["block_size = 32, kernel_stride = 16: kernels", "block_size = 64"]),
        ({"num_heads": 64}, "bfloat16", ["fdiv(num_heads, num_kv_heads) is 32", "<= 16"]),
        ({"topk": 67}, "bfloat16", ["topk - init_blocks - 1 is 65", "<= 64"]),
    ],
)
def test_what_sparse_kernels_cannot_serve_is_named(change: dict[str, int], dtype: str, named: list[str]) -> None:
    reason = unsupported_reason(KERNEL_SETS["infllmv2_attention"], {**SPARSE, **change}, dtype)
    assert reason is not None
    for words in named:
        assert words in reason


def test_head_dim_without_lightning_kernels_is_named() -> None:
    attributes = {"num_heads": 32, "head_dim": 32, "eps": 1e-6, "scale": 32**-0.5}
    reason = unsupported_reason(KERNEL_SETS["lightning_attention"], attributes, "bfloat16")
    assert reason is not None
    assert "head_dim = 32" in reason


def test_code_depends_on_no_number_that_python_passes() -> None:
    """As in the shipped cubins: else kernels that are tested and timed on a GPU are other ones."""
    for kernel_set in KERNEL_SETS.values():
        for launch in kernel_set.launches:
            numbers = [p for p in launch.kernel.params if not p.is_constexpr and not p.name.endswith("_ptr")]
            assert numbers
            assert [p.name for p in numbers if not p.do_not_specialize] == [], launch.name


def _unwaiting(launch: Launch) -> Launch:
    """The launch with a kernel that cannot know that it is dependent."""
    other = KERNEL_SETS["lightning_attention"].prefill[-1]
    return replace(launch, kernel=other.kernel, tiles=other.tiles)


def test_launches_are_dependent_in_decode_where_the_architecture_lets_them() -> None:
    kernel_set = KERNEL_SETS["lightning_attention"]
    for sequence, architectures in ((kernel_set.decode, {90, 120}), (kernel_set.prefill, set())):
        for launch in sequence:
            dependent = {sm for sm in AOT_ARCHITECTURES if launch.is_dependent(sm)}
            assert dependent == architectures
            flags = {sm: kernel_set.compile_time(launch, sm, {"head_dim": 64})["DEPENDENT"] for sm in AOT_ARCHITECTURES}
            assert flags == {sm: int(sm in dependent) for sm in AOT_ARCHITECTURES}


def test_dependent_launch_of_a_kernel_that_cannot_wait_is_refused() -> None:
    kernel_set = KERNEL_SETS["lightning_attention"]
    with pytest.raises(ValueError, match="lightning_output_kernel: a dependent launch needs a kernel that takes DEPEN"):
        replace(kernel_set, decode=tuple(map(_unwaiting, kernel_set.decode)))


def test_counter_of_another_type_is_refused() -> None:
    kernel_set = KERNEL_SETS["lightning_attention"]
    with pytest.raises(ValueError, match="counters are int32: finished"):
        replace(kernel_set, counters=(replace(kernel_set.counters[0], dtype="float32"),))


def test_lowering_for_an_architecture_without_warp_groups_gives_an_h100_its_instructions() -> None:
    """What `bind_kernels` asks for with `sm=86` on an H100."""
    kernel_set = KERNEL_SETS["infllmv2_attention"]
    launch = next(launch for launch in kernel_set.launches if launch.name == "infllmv2_attend_kernel")
    contract = next(contract for contract in CONTRACTS if contract.name == "infllmv2_attention")
    job = compile_job(contract, kernel_set, launch, activation="bfloat16", variant=kernel_set.aot_variants[-1], sm=86)
    source = ASTSource(launch.kernel, dict(job.signature), dict(job.constexprs))
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, "enable_fp_fusion": True}
    compiled, own = (
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options={**options, **more})
        for more in ({"arch": "sm86"}, {})
    )
    assert "mma.sync" in compiled.asm["ptx"]
    assert "wgmma" not in compiled.asm["ptx"]
    assert "wgmma" in own.asm["ptx"]
    assert ".target sm_90a" in compiled.asm["ptx"]
