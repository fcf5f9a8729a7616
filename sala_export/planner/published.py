"""Published figures: MiniCPM-SALA technical report (arXiv 2602.11761), batch 1, seconds to the first token.

The report's A6000D is the RTX PRO 6000D (recipe a6000d), not the RTX A6000. None means out of memory. Every run also
generated 1K tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint.config import SalaConfig
from ..checkpoint.presets import PRESETS
from .work import Dense

PUBLISHED_CONFIG = PRESETS["9b"].config

CONTEXTS = tuple(64 * 1024 << i for i in range(5))
"""Lengths of the published prompts, 64K to 1M tokens."""
GENERATED_TOKENS = 1024

QWEN3_8B = Dense(
    name="Qwen3-8B",
    layers=36,
    hidden_size=4096,
    intermediate_size=12288,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
)
BASELINES: Mapping[str, Dense] = {"qwen3-8b": QWEN3_8B}


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One row of the report: a model on a GPU."""

    recipe: str
    weights: str
    """Type of the weights: `bf16`, or `int4` with 16-bit activations."""
    sala: tuple[float, ...]
    qwen3_8b: tuple[float | None, ...]


TTFT_SECONDS = (
    Published(
        recipe="rtx5090",
        weights="bf16",
        sala=(10.8, 22.3, 45.9, 100.3, 222.6),
        qwen3_8b=(10.4, None, None, None, None),
    ),
    Published(
        recipe="rtx5090",
        weights="int4",
        sala=(10.9, 22.2, 46.1, 100.4, 228.0),
        qwen3_8b=(10.6, 33.3, None, None, None),
    ),
    Published(
        recipe="a6000d",
        weights="bf16",
        sala=(12.3, 25.2, 51.6, 109.9, 250.3),
        qwen3_8b=(16.1, 51.3, 180.8, None, None),
    ),
    Published(
        recipe="a6000d",
        weights="int4",
        sala=(12.6, 25.7, 52.6, 112.7, 256.9),
        qwen3_8b=(16.4, 52.1, 182.3, None, None),
    ),
)


def is_published_model(config: SalaConfig) -> bool:
    """True if published figures apply, that is, if every size that decides time and memory is the published one."""
    published = PUBLISHED_CONFIG
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    return all(getattr(config, name) == getattr(published, name) for name in (*names, "mixer_types", "sparse_config"))


def published_seconds(recipe: str, weights: str) -> Published | None:
    """Find the report's seconds of a GPU. None if the report has none."""
    return next((row for row in TTFT_SECONDS if (row.recipe, row.weights) == (recipe, weights)), None)
