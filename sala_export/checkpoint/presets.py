"""Model sizes that `random-checkpoint` writes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import RequestError
from .config import Mixer, SalaConfig, SparseConfig

_PUBLISHED_SPARSE_LAYERS = (0, 9, 16, 17, 22, 29, 30, 31)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A model and how its files are cut."""

    config: SalaConfig
    max_shard_bytes: int


def _mixers(layers: int, sparse: tuple[int, ...]) -> tuple[Mixer, ...]:
    return tuple(Mixer.SPARSE if layer in sparse else Mixer.LIGHTNING for layer in range(layers))


def _end_of_turn(vocab_size: int) -> int:
    """Id of `<|im_end|>`: as in the published vocabulary, the eighth from the end."""
    return vocab_size - 8


PRESETS = {
    # Every neighbourhood of mixers occurs, the ends are sparse as in the published model, and a context of 769 tokens
    # is the first with rows that do not see all their blocks.
    "tiny": Preset(
        config=SalaConfig(
            vocab_size=512,
            hidden_size=256,
            intermediate_size=512,
            num_attention_heads=32,
            num_key_value_heads=2,
            head_dim=64,
            mixer_types=_mixers(5, (0, 3, 4)),
            sparse_config=SparseConfig(topk=8, window_size=256, dense_len=512),
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            scale_emb=12.0,
            scale_depth=1.4,
            dim_model_base=64,
            max_position_embeddings=524288,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=(2, _end_of_turn(512)),
            pad_token_id=2,
            residual_depth=5,
        ),
        max_shard_bytes=8_000_000,
    ),
    # The dimensions of openbmb/MiniCPM-SALA.
    "9b": Preset(
        config=SalaConfig(
            vocab_size=73448,
            hidden_size=4096,
            intermediate_size=16384,
            num_attention_heads=32,
            num_key_value_heads=2,
            head_dim=128,
            mixer_types=_mixers(32, _PUBLISHED_SPARSE_LAYERS),
            sparse_config=SparseConfig(),
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            scale_emb=12.0,
            scale_depth=1.4,
            dim_model_base=256,
            max_position_embeddings=524288,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=(2, _end_of_turn(73448)),
            pad_token_id=2,
            residual_depth=32,
        ),
        max_shard_bytes=5_000_000_000,
    ),
}


def preset(name: str, layers: int | None = None) -> Preset:
    """A preset by name; with `layers`, a model of its own with the first that many mixers.

    Unlike `SalaConfig.truncated`, the result knows nothing of the longer model: its residual scale follows from
    `layers`, as it must for a config.json that says `num_hidden_layers: layers`.

    Raises: RequestError if the name is unknown or the preset has fewer layers.
    """
    if name not in PRESETS:
        raise RequestError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    found = PRESETS[name]
    if layers is None:
        return found
    return replace(found, config=replace(found.config.truncated(layers), residual_depth=layers))
