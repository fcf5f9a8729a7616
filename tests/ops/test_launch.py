"""Refusals of what the shipped kernels cannot serve."""

from __future__ import annotations

import pytest

from sala_export.ops.common.launch import unsupported_reason
from sala_export.ops.kernel_sets import KERNEL_SETS

SPARSE: dict[str, int | float] = {
    "num_heads": 32,
    "num_kv_heads": 2,
    "head_dim": 128,
    "scale": 128**-0.5,
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "topk": 64,
    "window_size": 2048,
    "init_blocks": 1,
    "dense_len": 8192,
}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_published_sizes_are_served(head_dim: int) -> None:
    kernels = KERNEL_SETS["infllmv2_attention"]
    assert unsupported_reason(kernels, {**SPARSE, "head_dim": head_dim}, "bfloat16") is None


@pytest.mark.parametrize(
    ("change", "dtype", "named"),
    [
        ({}, "float32", ["activations are float32", "bfloat16"]),
        ({"head_dim": 96}, "bfloat16", ["head_dim = 96", "head_dim = 64; head_dim = 128"]),
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
