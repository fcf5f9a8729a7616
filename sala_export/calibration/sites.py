"""The sites where a layer quantises: each input of products, its consumers, and its source.

A *site* is one input of projections. The projections of a site share the scale of that input, and run as one product.
An input can be divided by a scale per channel without a change of the function, if its consumers multiply their columns
by it and something linear before it takes the division. Every input of this model has such a source:

| site | consumers | source |
|---|---|---|
| mixer input | q, k, v and the gate (`z_proj`, `o_gate`) | `input_layernorm` |
| `o_proj`, lightning | `o_proj` | `o_norm`: the gate after it is element-wise |
| `o_proj`, sparse | `o_proj` | rows of `v_proj`: attention averages values element by element |
| MLP input | gate, up | `post_attention_layernorm` |
| `down_proj` | `down_proj` | rows of `up_proj`: `silu(gate) * up` is linear in up |

Query heads of a group share a value head, so in a sparse layer the channels that one row of `v_proj` feeds share a
scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import MIXER_MODULES


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One input of projections. Modules are named within their layer."""

    projections: tuple[str, ...]
    """Quantised projections of the input, in the order of the packed product."""
    kept: tuple[str, ...] = ()
    """Projections of the same input that are not quantised."""
    source: str
    """Module whose weight takes the division: a norm, or a projection whose rows do."""
    shared_by: int = 1
    """Groups of query heads per row of the source: channels that one row feeds."""

    @property
    def consumers(self) -> tuple[str, ...]:
        return (*self.projections, *self.kept)


def layer_sites(config: SalaConfig, layer: int, *, include_gates: bool) -> tuple[Site, ...]:
    """The sites of a layer, each after those whose scales change its weights."""
    modules = MIXER_MODULES[config.mixer_types[layer]]
    *mixer, gate = (f"self_attn.{role}" for role in modules.packed)
    output = (
        Site(projections=("self_attn.o_proj",), source="self_attn.o_norm")
        if "o_norm" in modules.norms
        else Site(
            projections=("self_attn.o_proj",),
            source="self_attn.v_proj",
            shared_by=config.num_attention_heads // config.num_key_value_heads if modules.has_key_heads else 1,
        )
    )
    return (
        output,
        Site(projections=("mlp.down_proj",), source="mlp.up_proj"),
        Site(
            projections=(*mixer, gate) if include_gates else tuple(mixer),
            kept=() if include_gates else (gate,),
            source="input_layernorm",
        ),
        Site(projections=("mlp.gate_proj", "mlp.up_proj"), source="post_attention_layernorm"),
    )


def across_shared(site: Site, channels: Tensor, head_dim: int) -> Tensor:
    """The largest of the channels [in] that one row of the source feeds, spread over them again, [in]."""
    if site.shared_by == 1:
        return channels
    heads = channels.view(-1, site.shared_by, head_dim)
    return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)


def fold(weights: dict[str, Tensor], site: Site, scale: Tensor, head_dim: int) -> None:
    """Divide the input of `site` by `scale` [in], in its source and the columns of its consumers; in place.

    Exact if `scale` holds powers of two, in whatever type the weights are.
    """
    for consumer in site.consumers:
        weights[consumer].mul_(scale)
    source = weights[site.source]
    rows = scale if site.shared_by == 1 else scale.view(-1, site.shared_by, head_dim)[:, 0].reshape(-1)
    source.div_(rows if source.ndim == 1 else rows[:, None])


def powers_of_two(scale: Tensor) -> Tensor:
    """The nearest power of two, by the exponent, of each positive number."""
    return torch.exp2(torch.round(torch.log2(scale)))
