"""The configuration class of MiniCPM-SALA for transformers, by which TensorRT-LLM reads config.json."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ..checkpoint.config import MODEL_TYPE, SalaConfig
from .hybrid_fields import hybrid_fields


class MiniCPMSALAConfig(PretrainedConfig):
    """Every field of config.json, and those by which TensorRT-LLM knows a hybrid model."""

    model_type = MODEL_TYPE

    def __init__(self, **fields: Any) -> None:
        """Raises: ConfigError or UnsupportedError as `SalaConfig.from_dict`. transformers makes one without fields."""
        super().__init__(**fields)
        if fields:
            add_hybrid_fields(self)


def add_hybrid_fields(config: Any) -> SalaConfig:
    """Add the fields to a configuration of any class, such as one that came with a checkpoint. Returns: it, checked.

    Raises: as `SalaConfig.from_dict` and `hybrid_fields`.
    """
    checked = SalaConfig.from_dict(config.to_dict())
    for name, value in hybrid_fields(checked).items():
        setattr(config, name, value)
    return checked


def register_configuration() -> None:
    """Let transformers read config.json files of this model type with the class."""
    AutoConfig.register(MODEL_TYPE, MiniCPMSALAConfig, exist_ok=True)
