"""Checkpoints of any mixer order and sparse sizes, small enough to run in a blink."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file

from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import weights


def write_small_checkpoint(
    directory: Path,
    mixers: Sequence[str],
    *,
    sparse_config: Mapping[str, int],
    num_attention_heads: int = 4,
    head_dim: int = 16,
    tie_word_embeddings: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scales: Mapping[str, float] = MappingProxyType({}),
) -> Path:
    """Write a one-file checkpoint with normal weights, larger by `scales` for some roles; returns `directory`."""
    fields = {
        "model_type": "minicpm_sala",
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": len(mixers),
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "mixer_types": list(mixers),
        "sparse_config": dict(sparse_config),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 24,
        "max_position_embeddings": 4096,
        "eos_token_id": 2,
        "tie_word_embeddings": tie_word_embeddings,
    }
    config = SalaConfig.from_dict(fields)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for weight in weights(config):
        values = torch.randn(weight.shape, generator=generator)
        scale = 1.0 if len(weight.shape) == 1 else weight.shape[-1] ** -0.5
        tensors[weight.name] = (values * scale * scales.get(weight.role, 1.0)).to(dtype)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors")
    return directory
