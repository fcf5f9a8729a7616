"""The names and shapes of a checkpoint's weights: the one list that reader, model, export and random checkpoints share.

H hidden size, I intermediate size, V vocabulary, D head_dim, A = num_attention_heads * D, G = num_key_value_heads * D.
Linear weights are [out, in]; there are no biases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .config import Mixer, SalaConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerModules:
    """The modules of a mixer, below `self_attn`."""

    gate: str
    """The projection whose sigmoid multiplies what attention gives."""
    norms: tuple[str, ...] = ()
    has_key_heads: bool
    """True if keys and values have `num_key_value_heads` heads, False if they have as many as the queries."""

    @property
    def packed(self) -> tuple[str, ...]:
        """Projections of the mixer's input, which are one product, in the order of its rows."""
        return ("q_proj", "k_proj", "v_proj", self.gate)


MIXER_MODULES: Mapping[Mixer, MixerModules] = {
    Mixer.LIGHTNING: MixerModules(gate="z_proj", norms=("q_norm", "k_norm", "o_norm"), has_key_heads=False),
    Mixer.SPARSE: MixerModules(gate="o_gate", has_key_heads=True),
}
GATE_ROLES = tuple(dict.fromkeys(modules.gate for modules in MIXER_MODULES.values()))
"""Gates of the mixers: kept in bf16 unless their q, k and v are quantised in the same way."""

_MLP_PACK = ("gate_proj", "up_proj")
PACKED_ROLES = (("q_proj", "k_proj", "v_proj", *GATE_ROLES), _MLP_PACK)
"""Projections of one input, which the graph packs into one product in this order."""


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
    shapes = {
        "input_layernorm": (hidden,),
        **{f"self_attn.{role}": shape for role, shape in mixer_shapes(config, config.mixer_types[layer]).items()},
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    return tuple(
        Weight(name=f"model.layers.{layer}.{module}.weight", shape=shape, layer=layer)
        for module, shape in shapes.items()
    )


def mixer_shapes(config: SalaConfig, mixer: Mixer) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a mixer by its module, in the order of computation."""
    hidden, head_dim, modules = config.hidden_size, config.head_dim, MIXER_MODULES[mixer]
    width = config.num_attention_heads * head_dim
    key_width = config.num_key_value_heads * head_dim if modules.has_key_heads else width
    norms = {"q_norm": (head_dim,), "k_norm": (head_dim,), "o_norm": (width,)}
    return {
        "q_proj": (width, hidden),
        "k_proj": (key_width, hidden),
        "v_proj": (key_width, hidden),
        modules.gate: (width, hidden),
        **{norm: norms[norm] for norm in modules.norms},
        "o_proj": (hidden, width),
    }


def layer_packs(config: SalaConfig, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the weights of a layer's packed products, in the order of their rows: those of the mixer, of the MLP."""
    prefix, packed = f"model.layers.{layer}", MIXER_MODULES[config.mixer_types[layer]].packed
    return (
        tuple(f"{prefix}.self_attn.{role}.weight" for role in packed),
        tuple(f"{prefix}.mlp.{role}.weight" for role in _MLP_PACK),
    )


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
