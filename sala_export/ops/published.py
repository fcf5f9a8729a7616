"""Attributes of both operators in the published model, for tests and benchmarks; an exported graph states its own."""

from __future__ import annotations

from collections.abc import Mapping

LIGHTNING_ATTENTION: Mapping[str, int | float] = {"num_heads": 32, "head_dim": 128, "eps": 1e-6, "scale": 128**-0.5}

INFLLMV2_ATTENTION: Mapping[str, int | float] = {
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
