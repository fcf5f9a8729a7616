"""Which projections a checkpoint holds quantised, and how.

`quantization_config.py` reads it from JSON. The tensors themselves are checked in `quantized_weights.py`;
docs/quantisation.md describes the formats.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from ..errors import RequestError, UnsupportedError
from ..numerics.number_formats import E2M1_MAX, E4M3_MAX, INT4_MAX, INT8_MAX
from ..specs import DType, Precision
from .ignored_modules import PATTERN, is_listed
from .keymap import GATE_ROLES

QUANTIZATION_FIELD = "quantization_config"
QUANT_METHOD = "compressed-tensors"

QUANTIZABLE_ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that may be quantised by themselves."""
GATE_PATTERNS = tuple(f"{PATTERN}.*{role}" for role in GATE_ROLES)
DEFAULT_IGNORE = (*GATE_PATTERNS, "lm_head")
LINEAR = "Linear"
"""The class of all projections, among the targets of a quantisation."""


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
    by_token: bool = False
    """Each row of activations has a scale of its own, taken at run time, and the checkpoint holds none."""
    input_multiple: int = 1
    """Inputs of a projection are a multiple of this: of a group, or of a word of four scales of groups."""
    with_gates: bool = False
    """`sala-export quantize` quantises the gates too unless it is told otherwise."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """What a group's `weights` and `input_activations` also say where they are written. Nobody has to say it."""

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
    def rounds_input(self) -> bool:
        """True if products quantise their inputs, by whatever scales: stored ones, or such as are taken at run time."""
        return self.input_activations is not None

    @property
    def bits_per_weight(self) -> float:
        """Bits of one code and of its share of the scale of its group."""
        return self.bits + (self.tensors["weight_scale"].bits / self.group if self.group else 0)

    def with_scales_by_token(self) -> Scheme:
        """The same weights with a scale for each row of activations. Only for fp8 and int8."""
        tensors = {role: dtype for role, dtype in self.tensors.items() if role != "input_scale"}
        activations = {**(self.input_activations or {}), "strategy": "token", "dynamic": True}
        return replace(self, tensors=tensors, input_activations=activations, by_token=True)


_INTEGER, _FLOAT = {"type": "int", "symmetric": True}, {"type": "float", "symmetric": True}
_STATIC = {"strategy": "tensor", "dynamic": False}
_SCALES = {"weight_scale": DType.FLOAT32, "input_scale": DType.FLOAT32}
_MX_BLOCKS = {"num_bits": 8, **_FLOAT, "strategy": "group", "group_size": 32}
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
    Precision.MXFP8: Scheme(
        precision=Precision.MXFP8,
        format="mxfp8-quantized",
        # A scale is the exponent byte of a power of two, 2^(byte - 127): E8M0 of the OCP microscaling formats.
        tensors={"weight": DType.FLOAT8_E4M3FN, "weight_scale": DType.UINT8},
        largest=E4M3_MAX,
        input_type=DType.FLOAT8_E4M3FN,
        group=32,
        weights=_MX_BLOCKS,
        input_activations={**_MX_BLOCKS, "dynamic": True},
        # Operators take four scales of neighbouring groups as a word.
        input_multiple=128,
        with_gates=True,
        # By this other tools tell the format.
        written={"scale_dtype": "torch.uint8"},
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
        input_multiple=128,
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
        input_multiple=16,
    ),
}


class Packing(Enum):
    """Where tools put the eight int4 codes of an int32, from its lowest bits up, in a matrix of [in, out]."""

    ROWS = auto()
    """Eight inputs of an output, [in / 8, out]."""
    COLUMNS = auto()
    """Eight outputs of an input in the order 0, 2, 4, 6, 1, 3, 5, 7, [in, out / 8]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLayout:
    """How a tool stores the tensors of a scheme. By default as compressed-tensors does."""

    tool: str = QUANT_METHOD
    names: Mapping[str, str] = field(default_factory=dict)
    """What the tool calls a role, where it has another name for it."""
    scales_divide: bool = True
    """The global scales of nvfp4 divide. If False, they multiply."""
    marker: str | None = None
    """Role of a tensor that just the quantised modules have. None: the configuration lists the modules."""
    sources: tuple[str, ...] = ()
    """Roles of the tensors that int4 codes and scales are made from (`int4_columns.py`): codes, scales, zero points,
    and the group of each input where the tool stores it."""
    packing: Packing | None = None
    """How `sources` pack their codes."""
    zero: int = 0
    """What they store for the zero point 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What a checkpoint says of its quantisation."""

    scheme: Scheme
    ignore: tuple[str, ...] = DEFAULT_IGNORE
    """Modules kept in 16 bits: full names, or `re:` and an expression that matches from the start of the name."""
    targets: tuple[str, ...] = (LINEAR,)
    """Modules that are quantised unless they are in `ignore`: as there, or `Linear` for all projections."""
    layout: TensorLayout = field(default_factory=TensorLayout)
    notes: tuple[str, ...] = ()
    """What the tool has asked for and does not get, in a line each."""

    @classmethod
    def default(cls, precision: Precision, *, include_gates: bool | None = None) -> Quantization:
        """The choice that `sala-export quantize` makes.

        Args: `include_gates`: quantise `z_proj` and `o_gate` too. None: as is the default of the precision.
        """
        scheme = SCHEMES[precision]
        gates = scheme.with_gates if include_gates is None else include_gates
        return cls(
            scheme=scheme, ignore=tuple(each for each in DEFAULT_IGNORE if not gates or each not in GATE_PATTERNS)
        )

    @property
    def precision(self) -> Precision:
        return self.scheme.precision

    def covers(self, weight_name: str) -> bool:
        """True if the projection that owns this weight is quantised. Norms and the embedding never are."""
        module = weight_name.removesuffix(".weight")
        role = module.rpartition(".")[2]
        if role not in (*QUANTIZABLE_ROLES, *GATE_ROLES, "lm_head"):
            return False
        return self._lists(module, self.targets) and not self._lists(module, self.ignore)

    def of_stored(self, modules: Collection[str], names: Container[str]) -> Quantization:
        """The same, for a tool whose configuration does not say which modules are quantised: the tensors do.

        Args: `modules`, all projections; `names` of all tensors that are stored.
        """
        marker = self.layout.marker
        if marker is None:
            return self
        return replace(self, ignore=tuple(module for module in modules if f"{module}.{marker}" not in names))

    @staticmethod
    def _lists(module: str, entries: tuple[str, ...]) -> bool:
        return LINEAR in entries or is_listed(module, entries)

    def stored_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a quantised weight [outputs, inputs] and the scales of its groups."""
        return int(outputs * inputs * self.scheme.bits_per_weight) // 8

    def to_dict(self, *, weight_strategy: str | None = None) -> dict[str, Any]:
        """The object `quantization_config` of config.json; `weight_strategy` `channel` for a scale per channel."""
        strategy = {} if weight_strategy is None else {"strategy": weight_strategy}
        activations, also = self.scheme.input_activations, self.scheme.written
        group = {
            "targets": ["Linear"],
            "weights": {**self.scheme.weights, **also, **strategy, "dynamic": False},
            "input_activations": None if activations is None else {**activations, **also},
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


def require_quantizable(name: str, inputs: int, scheme: Scheme) -> None:
    """Refuse a projection of so many inputs, which cannot be cut into groups. Raises: UnsupportedError."""
    if inputs % scheme.input_multiple:
        what = "a group" if scheme.input_multiple == scheme.group else f"a word of four scales for {scheme.group} each"
        raise UnsupportedError(
            f"{name} has {inputs} inputs, but {scheme.precision} needs a multiple of {scheme.input_multiple}, {what}: "
            "quantise to fp8 or int8"
        )


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
