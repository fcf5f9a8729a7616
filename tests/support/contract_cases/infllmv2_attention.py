"""A small call of InfLLMv2Attention, and what breaks each of its rules."""

from __future__ import annotations

from . import ContractCase

CASE = ContractCase(
    attributes={
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "scale": 0.35,
        "kernel_size": 16,
        "kernel_stride": 8,
        "block_size": 16,
        "topk": 2,
        "window_size": 16,
        "init_blocks": 1,
        "dense_len": -1,
    },
    dims={"B": 2, "T": 5, "C": 70, "C1": 7, "C2": 1},
    inputs={"past_length": [0, 60], "context_length": [5, 66]},
    broken_rules=(
        ({"T": 0}, "T >= 1"),
        ({"T": 71}, "C >= T"),
        ({"C1": 6}, "C1 >= fdiv(C - kernel_size, kernel_stride) + 1"),
        ({"C2": 0}, "C2 >= fdiv(C - 4 * kernel_size, 4 * kernel_stride) + 1"),
        ({"num_heads": 5}, "num_kv_heads * fdiv(num_heads, num_kv_heads) == num_heads"),
        ({"block_size": 12}, "kernel_stride * fdiv(block_size, kernel_stride) == block_size"),
        ({"kernel_size": 8, "C1": 9, "C2": 2}, "kernel_size >= kernel_stride + 1"),
        ({"window_size": 24}, "block_size * fdiv(window_size, block_size) == window_size"),
        ({"init_blocks": 2}, "topk >= init_blocks + 1"),
        ({"num_heads": 0}, "num_heads >= 1"),
        ({"num_kv_heads": 0}, "num_kv_heads >= 1"),
        ({"head_dim": 0}, "head_dim >= 1"),
        ({"kernel_size": 0}, "kernel_size >= 1"),
        ({"kernel_stride": 0}, "kernel_stride >= 1"),
        ({"block_size": 0}, "block_size >= 1"),
        ({"window_size": -16}, "window_size >= 0"),
        ({"init_blocks": -1}, "init_blocks >= 0"),
    ),
)
