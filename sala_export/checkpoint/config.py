"""The model configuration: a Hugging Face `config.json`, typed and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ..errors import ConfigError, RequestError, UnsupportedError
from .fields import JsonFields
from .rope_table import inverse_frequencies, require_frequencies

MODEL_TYPE = "minicpm_sala"
ARCHITECTURE = "MiniCPMSALAForCausalLM"
"""The class that the published config.json names."""
DEFAULT_MODEL = "openbmb/MiniCPM-SALA"
"""Hub id of the published model."""

_MOST_LAYERS = 1000
"""Of a checkpoint. Every weight of every layer is listed by name."""


_CLOSED: dict[str, str] = {"extra": "forbid"}
"""For pydantic, which reads bundle.json: unknown fields are refused."""


class Mixer(StrEnum):
    """Token mixer of a layer; the values are those of `mixer_types` in config.json."""

    SPARSE = "minicpm4"
    LIGHTNING = "lightning-attn"


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """InfLLM-v2 sizes, in tokens unless said otherwise."""

    __pydantic_config__ = _CLOSED

    kernel_size: int = 32
    kernel_stride: int = 16
    block_size: int = 64
    topk: int = 64
    """Blocks taken by score; window blocks come on top."""
    window_size: int = 2048
    init_blocks: int = 1
    dense_len: int = 8192
    """Contexts shorter than this are dense; -1: always sparse."""

    def __post_init__(self) -> None:
        def require(condition: bool, text: str) -> None:
            if not condition:
                raise ConfigError(f"sparse_config: {text}")

        for name in ("kernel_size", "kernel_stride", "block_size", "topk"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}, expected a positive integer")
        for name, least in (("window_size", 0), ("init_blocks", 0), ("dense_len", -1)):
            require(getattr(self, name) >= least, f"{name} is {getattr(self, name)}, expected at least {least}")
        require(
            self.kernel_size > self.kernel_stride,
            f"kernel_size {self.kernel_size} is not larger than kernel_stride {self.kernel_stride}",
        )
        require(
            self.block_size % self.kernel_stride == 0,
            f"block_size {self.block_size} is not a multiple of kernel_stride {self.kernel_stride}",
        )
        require(
            self.window_size % self.block_size == 0,
            f"window_size {self.window_size} is not a multiple of block_size {self.block_size}",
        )
        require(
            self.topk > self.init_blocks,
            f"topk {self.topk} leaves no room for {self.init_blocks} init_blocks and the query's own block",
        )

    @property
    def taken_blocks(self) -> int:
        """Blocks that a query attends to, forced ones included."""
        return self.topk + self.window_size // self.block_size

    def k1_count(self, tokens: int) -> int:
        """Complete k1 windows among `tokens` keys."""
        return max(0, (tokens - self.kernel_size) // self.kernel_stride + 1)

    def k2_count(self, tokens: int) -> int:
        """Complete k2 windows among `tokens` keys."""
        return max(0, (tokens - 4 * self.kernel_size) // (4 * self.kernel_stride) + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SalaConfig:
    """What the toolkit needs of config.json, under the names used there.

    Raises (from every constructor): ConfigError for a missing or contradictory field, UnsupportedError for a value that
    is valid elsewhere but not served here; both name the field.
    """

    __pydantic_config__ = _CLOSED

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mixer_types: tuple[Mixer, ...]
    sparse_config: SparseConfig
    rms_norm_eps: float
    rope_theta: float
    scale_emb: float
    scale_depth: float
    dim_model_base: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    pad_token_id: int | None
    residual_depth: int
    """Layers of the whole model, from which the residual scale follows even when only the first are taken."""

    @property
    def num_hidden_layers(self) -> int:
        return len(self.mixer_types)

    @property
    def residual_scale(self) -> float:
        """Factor on every block's output before it joins the residual stream."""
        return self.scale_depth / math.sqrt(self.residual_depth)

    @property
    def logit_divisor(self) -> float:
        """Divides the final hidden rows before lm_head."""
        return self.hidden_size / self.dim_model_base

    @property
    def attention_scale(self) -> float:
        """1/sqrt(head_dim), the factor on q k^T in both mixers."""
        return 1.0 / math.sqrt(self.head_dim)

    def inverse_frequencies(self) -> tuple[float, ...]:
        """RoPE's by pair of channels, each exactly an fp32 number."""
        return tuple(float(x) for x in inverse_frequencies(self.rope_theta, self.head_dim))

    def truncated(self, layers: int) -> SalaConfig:
        """The first `layers` layers, with the residual scale of the whole model.

        Raises: RequestError if the model does not have that many.
        """
        if not 1 <= layers <= self.num_hidden_layers:
            raise RequestError(
                f"layers is {layers}, but the model has {self.num_hidden_layers}: ask for 1 to that many"
            )
        return replace(self, mixer_types=self.mixer_types[:layers])

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], path: Path) -> SalaConfig:
        """Check and convert the fields of the config.json at `path`, which errors name."""
        try:
            return cls.from_dict(fields)
        except (ConfigError, UnsupportedError) as error:
            raise type(error)(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SalaConfig:
        """Check and convert the fields of a config.json; unknown keys are ignored, null means absent."""
        reader = JsonFields(fields)
        _refuse_unsupported(reader)
        heads, kv_heads, head_dim = _heads(reader)
        mixers = _mixers(reader)
        vocab_size = reader.integer("vocab_size")
        return cls(
            vocab_size=vocab_size,
            hidden_size=reader.integer("hidden_size"),
            intermediate_size=reader.integer("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            mixer_types=mixers,
            sparse_config=_sparse_config(reader, required=Mixer.SPARSE in mixers),
            rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(reader, head_dim),
            scale_emb=reader.number("scale_emb", 1.0),
            scale_depth=reader.number("scale_depth", 1.0),
            dim_model_base=reader.integer("dim_model_base"),
            max_position_embeddings=reader.integer("max_position_embeddings"),
            tie_word_embeddings=reader.flag("tie_word_embeddings", False),
            bos_token_id=reader.token("bos_token_id", vocab_size),
            eos_token_id=reader.tokens("eos_token_id", vocab_size),
            pad_token_id=reader.token("pad_token_id", vocab_size),
            residual_depth=len(mixers),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields under their names in config.json, JSON values only.

        `from_dict` reads them back, except that `residual_depth` is then the number of layers.
        """
        fields = asdict(self)
        del fields["residual_depth"]
        return fields | {
            "model_type": MODEL_TYPE,
            "num_hidden_layers": self.num_hidden_layers,
            "mixer_types": [mixer.value for mixer in self.mixer_types],
            "eos_token_id": list(self.eos_token_id),
            "lightning_nh": self.num_attention_heads,
            "lightning_nkv": self.num_attention_heads,
            "lightning_head_dim": self.head_dim,
            **_SERVED_VALUES,
        }


_SERVED_VALUES: Mapping[str, bool | str] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_use_rope": True,
    "lightning_scale": "1/sqrt(d)",
    "use_output_gate": True,
    "use_output_norm": True,
    "qk_norm": True,
}
"""Switches of the published model; any other value means another model, absence means the published one."""


def _refuse_unsupported(fields: JsonFields) -> None:
    model_type = fields.value("model_type")
    if model_type != MODEL_TYPE:
        raise UnsupportedError(
            f"model_type is {shown(model_type)}, expected {MODEL_TYPE!r}: this is no MiniCPM-SALA checkpoint"
        )
    for name, served in _SERVED_VALUES.items():
        value = fields.value(name, served)
        if value != served:
            raise UnsupportedError(f"{name} is {shown(value)}: only {served!r} is served")


def _heads(fields: JsonFields) -> tuple[int, int, int]:
    """`num_attention_heads`, `num_key_value_heads` and `head_dim`, the same for both mixers."""
    heads, kv_heads = fields.integer("num_attention_heads"), fields.integer("num_key_value_heads")
    head_dim = fields.integer("head_dim")
    if heads & (heads - 1):
        raise UnsupportedError(
            f"num_attention_heads is {heads}: lightning decay slopes are only defined here for powers of two"
        )
    if head_dim % 2:
        raise UnsupportedError(f"head_dim is {head_dim}: RoPE needs an even number of channels")
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    for name, expected in (("lightning_nh", heads), ("lightning_nkv", heads), ("lightning_head_dim", head_dim)):
        given = fields.integer(name, expected)
        if given != expected:
            raise UnsupportedError(
                f"{name} is {given}, expected {expected}: both mixers take their heads from "
                "num_attention_heads and head_dim"
            )
    return heads, kv_heads, head_dim


def _rope_theta(fields: JsonFields, head_dim: int) -> float:
    """From `rope_theta`, or from `rope_parameters` as transformers 5 writes it; scaled RoPE is refused."""
    given = [fields.number("rope_theta")] if "rope_theta" in fields else []
    for name in ("rope_scaling", "rope_parameters"):
        nested = fields.object(name)
        # `type` is the older name of `rope_type`.
        kind = nested.value("rope_type", nested.value("type", "default"))
        if kind != "default":
            raise UnsupportedError(f"{name}.rope_type is {shown(kind)}: only plain RoPE is served")
        if "rope_theta" in nested or (name == "rope_parameters" and name in fields and not given):
            given.append(nested.number("rope_theta"))
    if len(set(given)) > 1:
        raise ConfigError(f"rope_theta is given as {' and as '.join(map(str, given))}")
    theta = given[0] if given else 10000.0
    require_frequencies(theta, head_dim)
    return theta


def _mixers(fields: JsonFields) -> tuple[Mixer, ...]:
    names = fields.items("mixer_types")
    if len(names) > _MOST_LAYERS:
        raise UnsupportedError(f"mixer_types has {len(names)} entries: at most {_MOST_LAYERS} layers are served")
    known = sorted(mixer.value for mixer in Mixer)
    for i, name in enumerate(names):
        if name not in known:
            raise UnsupportedError(f"mixer_types[{i}] is {shown(name)}: known mixers are {', '.join(known)}")
    layers = fields.integer("num_hidden_layers")
    if layers != len(names):
        raise ConfigError(f"num_hidden_layers is {layers} but mixer_types has {len(names)} entries")
    return tuple(Mixer(name) for name in names)


def _sparse_config(fields: JsonFields, *, required: bool) -> SparseConfig:
    if required and "sparse_config" not in fields:
        raise ConfigError(f"sparse_config is missing, but mixer_types has {Mixer.SPARSE.value!r} layers")
    nested = fields.object("sparse_config")
    if nested.flag("use_nope", False):
        raise UnsupportedError("sparse_config.use_nope is true: only the released layers, without it, are served")
    # SparseConfig itself checks ranges; least=-1 admits every value that any of its fields can take.
    return SparseConfig(**{name: nested.integer(name, least=-1) for name in SparseConfig.__slots__ if name in nested})
