"""The names and shapes of a checkpoint's weights: the one list that reader, model, export and random checkpoints share.

H hidden size, I intermediate size, V vocabulary, D head_dim, A = num_attention_heads * D, G = num_key_value_heads * D.
Linear weights are [out, in]; there are no biases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .config import Mixer, SalaConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    """Index of the decoder layer; None for the embedding, the final norm and lm_head."""

    @property
    def role(self) -> str:
        """The module that owns the weight, without its path: `q_proj`, `input_layernorm`, `embed_tokens`, ..."""
        return self.name.split(".")[-2]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weights(config: SalaConfig) -> tuple[Weight, ...]:
    """All weights of a model in the order of computation; with tied embeddings there is no lm_head."""
    hidden, vocab = config.hidden_size, config.vocab_size
    found = [Weight(name=EMBEDDING, shape=(vocab, hidden))]
    for layer in range(config.num_hidden_layers):
        found += layer_weights(config, layer)
    found.append(Weight(name=FINAL_NORM, shape=(hidden,)))
    if not config.tie_word_embeddings:
        found.append(Weight(name=LM_HEAD, shape=(vocab, hidden)))
    return tuple(found)


def layer_weights(config: SalaConfig, layer: int) -> tuple[Weight, ...]:
    """The weights of one decoder layer in the order of computation."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    mixer = _lightning_mixer(config) if config.mixer_types[layer] is Mixer.LIGHTNING else _sparse_mixer(config)
    shapes = {
        "input_layernorm": (hidden,),
        **{f"self_attn.{module}": shape for module, shape in mixer.items()},
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    return tuple(
        Weight(name=f"model.layers.{layer}.{module}.weight", shape=shape, layer=layer)
        for module, shape in shapes.items()
    )


PACKED_ROLES = (("q_proj", "k_proj", "v_proj", "z_proj", "o_gate"), ("gate_proj", "up_proj"))
"""Projections of one input, which the graph packs into one product in this order."""


def packed_name(names: Sequence[str]) -> str:
    """`...self_attn.q_proj.weight` and its siblings become `...self_attn.q_proj+k_proj+v_proj+o_gate.weight`."""
    if len(names) == 1:
        return names[0]
    path = names[0].split(".")[:-2]
    return ".".join([*path, "+".join(name.split(".")[-2] for name in names), "weight"])


def packs(all_weights: Iterable[Weight]) -> tuple[tuple[Weight, ...], ...]:
    """The packed projections of every layer, in the order of their packs."""
    by_layer: dict[int, dict[str, Weight]] = {}
    for weight in all_weights:
        if weight.layer is not None:
            by_layer.setdefault(weight.layer, {})[weight.role] = weight
    return tuple(
        tuple(layer[role] for role in roles if role in layer) for layer in by_layer.values() for roles in PACKED_ROLES
    )


def _sparse_mixer(config: SalaConfig) -> dict[str, tuple[int, ...]]:
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (width, hidden),
        "k_proj": (kv_width, hidden),
        "v_proj": (kv_width, hidden),
        "o_gate": (width, hidden),
        "o_proj": (hidden, width),
    }


def _lightning_mixer(config: SalaConfig) -> dict[str, tuple[int, ...]]:
    hidden, width, head_dim = config.hidden_size, config.num_attention_heads * config.head_dim, config.head_dim
    return {
        "q_proj": (width, hidden),
        "k_proj": (width, hidden),
        "v_proj": (width, hidden),
        "z_proj": (width, hidden),
        "q_norm": (head_dim,),
        "k_norm": (head_dim,),
        "o_norm": (width,),
        "o_proj": (hidden, width),
    }
