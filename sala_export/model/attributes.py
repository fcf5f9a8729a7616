"""Attributes of the operators for a given model."""

from __future__ import annotations

from typing import Any

from ..checkpoint.config import Mixer, SalaConfig

Attributes = dict[str, Any]
"""int or float by attribute name."""


def operator_attributes(config: SalaConfig, mixer: Mixer) -> Attributes:
    """Every attribute of the operator that computes `mixer`."""
    if mixer is Mixer.LIGHTNING:
        return {
            "num_heads": config.num_attention_heads,
            "head_dim": config.head_dim,
            "eps": config.rms_norm_eps,
            "scale": config.attention_scale,
        }
    sparse = config.sparse_config
    return {
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "scale": config.attention_scale,
        "kernel_size": sparse.kernel_size,
        "kernel_stride": sparse.kernel_stride,
        "block_size": sparse.block_size,
        "topk": sparse.topk,
        "window_size": sparse.window_size,
        "init_blocks": sparse.init_blocks,
        "dense_len": sparse.dense_len,
    }
