"""How each kind of layer is computed: one row for each mixer, with its operator and what the operator takes.

For example, `MIXERS[Mixer.LIGHTNING].packed.name` is `qkvz`. The modules of a mixer, which are what a checkpoint holds
of it, stand in `checkpoint/keymap.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ..checkpoint.config import Mixer, SalaConfig
from ..ops.common.contract import Contract, Tensor
from ..ops.registry import INFLLMV2_ATTENTION, LIGHTNING_ATTENTION

Attributes = dict[str, Any]
"""int or float by attribute name."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerKind:
    """The operator that computes a mixer. It reads the packed projection, inputs of the step, norms and caches."""

    contract: Contract
    cache_roles: tuple[str, ...]
    """Names of the caches in a step's signature, in the order in which the operator takes them."""
    attributes: Callable[[SalaConfig], Attributes]
    """Every attribute of the operator for a model."""

    @property
    def packed(self) -> Tensor:
        """The packed projection [B, T, rows of all its weights]."""
        return self.contract.inputs[0]

    @property
    def rows(self) -> Tensor:
        """What the operator gives to `o_proj` [B, T, num_attention_heads * head_dim]."""
        return self.contract.outputs[0]

    @property
    def caches(self) -> tuple[Tensor, ...]:
        """The inputs that the operator updates."""
        updated = [output.updates for output in self.contract.outputs]
        return tuple(tensor for tensor in self.contract.inputs if tensor.name in updated)

    def sizes(self, config: SalaConfig) -> dict[str, int]:
        """The integer attributes for a model, by name: what shapes are written in."""
        return {name: value for name, value in self.attributes(config).items() if isinstance(value, int)}

    def inputs(self, packed: T, caches: Sequence[T], others: Mapping[str, T]) -> list[T]:
        """All inputs in the operator's order.

        Args: `others`, the norms and the inputs of the step by the operator's names for them, and any more.
        """
        names = [tensor.name for tensor in self.caches]
        found = {**others, self.packed.name: packed, **dict(zip(names, caches, strict=True))}
        return [found[tensor.name] for tensor in self.contract.inputs]


def _lightning(config: SalaConfig) -> Attributes:
    return {
        "num_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "eps": config.rms_norm_eps,
        "scale": config.attention_scale,
    }


def _sparse(config: SalaConfig) -> Attributes:
    return {
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "scale": config.attention_scale,
        **asdict(config.sparse_config),
    }


MIXERS: Mapping[Mixer, MixerKind] = {
    Mixer.LIGHTNING: MixerKind(contract=LIGHTNING_ATTENTION, cache_roles=("state",), attributes=_lightning),
    Mixer.SPARSE: MixerKind(contract=INFLLMV2_ATTENTION, cache_roles=("key", "value", "k1", "k2"), attributes=_sparse),
}
