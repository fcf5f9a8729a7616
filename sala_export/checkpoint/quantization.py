"""Which projections a checkpoint holds quantised, and how: `quantization_config` in the form of compressed-tensors.

The tensors themselves are checked in `quantized_weights.py`; docs/quantisation.md describes the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ..errors import ConfigError, RequestError, UnsupportedError
from ..numerics.number_formats import E2M1_MAX, E4M3_MAX, INT4_MAX, INT8_MAX
from ..specs import DType, Precision
from .ignored_modules import PATTERN, is_ignored, require_quick
from .keymap import GATE_ROLES

QUANTIZATION_FIELD = "quantization_config"
QUANT_METHOD = "compressed-tensors"

QUANTIZABLE_ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that may be quantised by themselves."""
GATE_PATTERNS = tuple(f"{PATTERN}.*{role}" for role in GATE_ROLES)
DEFAULT_IGNORE = (*GATE_PATTERNS, "lm_head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """One way to quantise a projection, and all that follows from it."""

    precision: Precision
    format: str
    """Word of compressed-tensors for how the tensors are stored."""
    tensors: Mapping[str, DType]
    """What stands for a weight, by role, and how it is stored: codes first, the scales in `weight_scale`."""
    largest: float
    """Largest magnitude of the number that a code stands for; activations of the same type go no further."""
    input_type: DType | None
    """Type of the codes where they are an input of an engine; None: they are constants of it."""
    group: int | None
    """Weights along the input that share a scale; None: a scale per tensor or per output channel."""
    weights: Mapping[str, Any]
    """Fields of a group's `weights` that decide; `strategy` may also be `channel` where `group` is None."""
    input_activations: Mapping[str, Any] | None
    """Fields of a group's `input_activations`; None: activations are not quantised, products are of 16 bits."""

    @property
    def codes_role(self) -> str:
        """Role of the tensor of codes."""
        return next(iter(self.tensors))

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return int(self.weights["num_bits"])

    @property
    def codes_per_element(self) -> int:
        """Codes in an element of their tensor."""
        return self.tensors[self.codes_role].bits // self.bits

    @property
    def bits_per_weight(self) -> float:
        """Bits of one code and of its share of the scale of its group."""
        return self.bits + (self.tensors["weight_scale"].bits / self.group if self.group else 0)


_INTEGER, _FLOAT = {"type": "int", "symmetric": True}, {"type": "float", "symmetric": True}
_STATIC = {"strategy": "tensor", "dynamic": False}
_SCALES = {"weight_scale": DType.FLOAT32, "input_scale": DType.FLOAT32}
_BLOCKS = {"num_bits": 4, **_FLOAT, "strategy": "tensor_group", "group_size": 16}

SCHEMES: Mapping[Precision, Scheme] = {
    Precision.FP8: Scheme(
        precision=Precision.FP8,
        format="float-quantized",
        tensors={"weight": DType.FLOAT8_E4M3FN, **_SCALES},
        largest=E4M3_MAX,
        input_type=DType.FLOAT8_E4M3FN,
        group=None,
        weights={"num_bits": 8, **_FLOAT, "strategy": "tensor"},
        input_activations={"num_bits": 8, **_FLOAT, **_STATIC},
    ),
    Precision.INT8: Scheme(
        precision=Precision.INT8,
        format="int-quantized",
        tensors={"weight": DType.INT8, **_SCALES},
        largest=INT8_MAX,
        input_type=DType.INT8,
        group=None,
        weights={"num_bits": 8, **_INTEGER, "strategy": "tensor"},
        input_activations={"num_bits": 8, **_INTEGER, **_STATIC},
    ),
    Precision.INT4: Scheme(
        precision=Precision.INT4,
        format="pack-quantized",
        tensors={"weight_packed": DType.INT32, "weight_scale": DType.BFLOAT16, "weight_shape": DType.INT64},
        largest=INT4_MAX,
        input_type=None,
        group=128,
        weights={"num_bits": 4, **_INTEGER, "strategy": "group", "group_size": 128},
        input_activations=None,
    ),
    Precision.NVFP4: Scheme(
        precision=Precision.NVFP4,
        format="nvfp4-pack-quantized",
        tensors={
            "weight_packed": DType.UINT8,
            "weight_scale": DType.FLOAT8_E4M3FN,
            "weight_global_scale": DType.FLOAT32,
            "input_global_scale": DType.FLOAT32,
        },
        largest=E2M1_MAX,
        input_type=DType.FLOAT4_E2M1FN,
        group=16,
        weights=_BLOCKS,
        input_activations={**_BLOCKS, "dynamic": "local"},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """The contents of `quantization_config`."""

    scheme: Scheme
    ignore: tuple[str, ...] = DEFAULT_IGNORE
    """Modules kept in 16 bits: full names, or `re:` and an expression that matches from the start of the name."""

    @classmethod
    def default(cls, precision: Precision) -> Quantization:
        """The choice that `sala-export quantize` makes by default."""
        return cls(scheme=SCHEMES[precision])

    @property
    def precision(self) -> Precision:
        return self.scheme.precision

    def covers(self, weight_name: str) -> bool:
        """True if the projection that owns this weight is quantised. Norms and the embedding never are."""
        module = weight_name.removesuffix(".weight")
        role = module.rpartition(".")[2]
        if role not in (*QUANTIZABLE_ROLES, *GATE_ROLES, "lm_head"):
            return False
        return not is_ignored(module, self.ignore)

    def stored_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a quantised weight [outputs, inputs] and the scales of its groups."""
        return int(outputs * inputs * self.scheme.bits_per_weight) // 8

    def to_dict(self, *, weight_strategy: str | None = None) -> dict[str, Any]:
        """The object `quantization_config` of config.json; `weight_strategy` `channel` for a scale per channel."""
        strategy = {} if weight_strategy is None else {"strategy": weight_strategy}
        group = {
            "targets": ["Linear"],
            "weights": {**self.scheme.weights, **strategy, "dynamic": False},
            "input_activations": self.scheme.input_activations,
            "output_activations": None,
        }
        return {
            "quant_method": QUANT_METHOD,
            "format": self.scheme.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }


def read_quantization(config_fields: Mapping[str, Any], config_file: Path) -> Quantization | None:
    """Read from the object in a config.json how its model is quantised. None if it is not.

    Raises: ConfigError for malformed fields, UnsupportedError for another method or scheme; both name file and field.
    """
    fields = config_fields.get(QUANTIZATION_FIELD)
    if fields is None:
        return None
    try:
        return _quantization(fields)
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{config_file}: {QUANTIZATION_FIELD}{error}") from None


def require_precision(stored: Precision | None, wanted: Precision, model: str) -> None:
    """Refuse to quantise, or to take back, what a checkpoint holds. Raises: RequestError saying what to do.

    Args: `stored` is the precision of a quantised checkpoint. `model` is its name, for the message.
    """
    if stored is None and wanted.is_quantized:
        raise RequestError(
            f"--precision {wanted}: {model} is not quantised; run sala-export quantize --precision {wanted} and take "
            "the checkpoint that it writes"
        )
    if stored not in (None, wanted):
        raise RequestError(
            f"--precision {wanted}: {model} is quantised to {stored}; use --precision {stored}, or the original "
            "checkpoint"
        )


def _quantization(fields: Any) -> Quantization:
    """Errors begin with the path of the field below `quantization_config`."""
    if not isinstance(fields, dict):
        raise ConfigError(f" is {shown(fields)}, expected an object")
    if fields.get("quant_method") != QUANT_METHOD:
        raise UnsupportedError(
            f".quant_method is {shown(fields.get('quant_method'))}: only {QUANT_METHOD} is read; take the original "
            "model and quantise it with sala-export quantize"
        )
    by_format = {scheme.format: scheme for scheme in SCHEMES.values()}
    form = fields.get("format")
    scheme = by_format.get(form) if isinstance(form, str) else None
    if scheme is None:
        raise UnsupportedError(f".format is {shown(form)}: known are {', '.join(by_format)}")
    if fields.get("kv_cache_scheme") is not None:
        raise UnsupportedError(".kv_cache_scheme is given: caches are 16 bits, quantise without it")
    groups = fields.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise UnsupportedError(".config_groups: expected one group, all projections quantised alike")
    ((name, group),) = groups.items()
    where = f".config_groups.{name}"
    if not isinstance(group, dict) or group.get("targets") != ["Linear"]:
        raise UnsupportedError(f"{where}.targets: expected ['Linear'], with what is not quantised in ignore")
    _check_arguments(f"{where}.weights", group.get("weights"), scheme.weights, channels=scheme.group is None)
    _check_arguments(f"{where}.input_activations", group.get("input_activations"), scheme.input_activations)
    ignore = fields.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        raise ConfigError(f".ignore is {shown(ignore)}, expected a list of module names")
    require_quick(ignore)
    return Quantization(scheme=scheme, ignore=tuple(ignore))


def _check_arguments(where: str, given: Any, expected: Mapping[str, Any] | None, *, channels: bool = False) -> None:
    if expected is None:
        if given is not None:
            raise UnsupportedError(f"{where} is given, but weights of this format go with activations of 16 bits")
        return
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {shown(given)}, expected an object")
    for field, value in expected.items():
        accepted = [value, "channel"] if field == "strategy" and channels else [value]
        if given.get(field) not in accepted:
            wanted = " or ".join(map(repr, accepted))
            raise UnsupportedError(f"{where}.{field} is {shown(given.get(field))}: only {wanted} is served")
    if given.get("actorder") not in (None, "weight", "static"):
        raise UnsupportedError(f"{where}.actorder is {shown(given['actorder'])}: columns must stay in their order")
