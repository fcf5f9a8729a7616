"""The tensors of quantised projections: which there must be, where they lie, and that their scales make sense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, UnsupportedError
from ..numerics.number_formats import E4M3_VALUES, E8M0_VALUES
from ..specs import DType, Precision
from .config import SalaConfig
from .float_types import FLOAT_TYPES, as_float32
from .int4_columns import Found, converted_int4
from .keymap import GATE_ROLES, Weight
from .quantization import QUANTIZABLE_ROLES, SCHEMES, Quantization, Scheme, require_quantizable
from .safetensors_header import TYPE_NAMES, StoredTensor
from .tensor_location import TensorFile, TensorLocation, locate

_AGAIN = "quantise the original model with sala-export quantize"

Stored = dict[str, tuple[TensorFile, StoredTensor]]
"""File and header entry of tensors, by name: as they are found, or in the form of compressed-tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedWeight:
    """A quantised weight [out, in]: `decode(data) * scale * global_scale`, each block of it with its own scale."""

    name: str
    """Name of the weight that it stands for, `...q_proj.weight`."""
    precision: Precision
    shape: tuple[int, int]
    tensors: Mapping[str, TensorLocation]
    """All that its numbers depend on, by the names that the checkpoint gives them."""
    scale_shape: tuple[int, int]
    """Blocks along the output and along the input; they divide `shape`."""
    global_scale: float
    """fp32; 1 but in nvfp4, where it is the reciprocal of the stored `weight_global_scale`."""
    input_scale: float | None
    """fp32, what quantised activations are multiplied with; in nvfp4 the scales of their blocks are, and it is the
    reciprocal of the stored `input_global_scale`. None if no number is stored: activations are not quantised, or by
    scales that are taken at run time. `rounds_input` tells them apart."""

    data_name: str
    """Name of the tensor of codes."""
    scale_name: str
    input_scale_name: str | None
    """Name of the scale of the input, in fp8 and int8, unless each row has its own."""
    by_token: bool = False
    """Each row of the input has a scale of its own, `largest magnitude / largest code`, taken at run time."""

    @property
    def scheme(self) -> Scheme:
        return SCHEMES[self.precision]

    @property
    def rounds_input(self) -> bool:
        """True if products quantise their input: by `input_scale`, or where that is None by scales of their own for
        each row (`by_token`) or each group of it (mxfp8)."""
        return self.scheme.rounds_input

    @property
    def data(self) -> TensorLocation:
        return self.tensors[self.data_name]

    @property
    def scale(self) -> TensorLocation:
        return self.tensors[self.scale_name]

    def scales(self) -> NDArray[np.float32]:
        """The scales [blocks along the output, blocks along the input], without `global_scale`."""
        return _as_float32(self.scale).reshape(self.scale_shape)

    @property
    def product(self) -> tuple[float | None, float]:
        """What weights must have in common to be one product: the scales that it has once."""
        return self.input_scale, self.global_scale


def tensor_names(weight: Weight, quantization: Quantization) -> tuple[str, ...]:
    """The tensors that a checkpoint holds in place of a quantised weight."""
    layout, module = quantization.layout, weight.name.removesuffix("weight")
    roles = layout.sources or [layout.names.get(role, role) for role in quantization.scheme.tensors]
    return tuple(module + role for role in roles)


def unread_names(config: SalaConfig, quantization: Quantization) -> tuple[str, ...]:
    """Tensors that a checkpoint holds for caches of fewer bits, as `Quantization.notes` says that they are left out."""
    prefixes = [f"model.layers.{layer}.self_attn." for layer in range(config.num_hidden_layers)]
    places = {"k_scale": ("", "k_proj."), "v_scale": ("", "v_proj.")} if quantization.notes else {}
    return tuple(prefix + place + name for prefix in prefixes for name in places for place in places[name])


def quantized_weights(
    all_weights: Iterable[Weight], quantization: Quantization, found: Found, folder: Path
) -> dict[str, QuantizedWeight]:
    """Check the tensors of every weight that `quantization` covers; returns them by the name of the weight.

    Args: `folder`, of the checkpoint, where messages place what is converted.
    Raises: UnsupportedError for a module that cannot be quantised; CheckpointError naming file and tensor.
    """
    covered = [weight for weight in all_weights if quantization.covers(weight.name)]
    for weight in covered:
        _require_quantizable(weight, quantization)
    stored: Stored = dict(found)
    if quantization.layout.sources and covered:
        wanted = {name: found[name] for weight in covered for name in tensor_names(weight, quantization)}
        file = converted_int4(covered, quantization, wanted, folder)
        stored = {name: (file, tensor) for name, tensor in file.tensors().items()}
    return {weight.name: _Reader(weight, quantization, stored).weight() for weight in covered}


def _require_quantizable(weight: Weight, quantization: Quantization) -> None:
    if weight.role not in (*QUANTIZABLE_ROLES, *GATE_ROLES):
        raise UnsupportedError(f"{weight.name} is quantised: only projections of layers may be, list it in ignore")
    require_quantizable(weight.name, weight.shape[1], quantization.scheme)


_SCALARS = ((1,), ())


class _Reader:
    """Checks the tensors of one weight."""

    def __init__(self, weight: Weight, quantization: Quantization, stored: Stored) -> None:
        self._weight, self._scheme, self._layout, self._stored = (
            weight,
            quantization.scheme,
            quantization.layout,
            stored,
        )
        self._tensors: dict[str, TensorLocation] = {}

    def weight(self) -> QuantizedWeight:
        scheme, (outputs, inputs) = self._scheme, self._weight.shape
        self._tensor(scheme.codes_role, (outputs, inputs // scheme.codes_per_element))
        scale = self._tensor("weight_scale", *self._scale_shapes())
        if self._name("weight_shape") in self._stored:
            self._check_shape()
        global_scale, input_scale = self._factor("weight_global_scale"), self._factor("input_global_scale")
        if "input_scale" in scheme.tensors:
            input_scale = self._number("input_scale")
        rows, columns = (*scale.shape, 1, 1)[:2]
        _require_positive(scale, self._name("weight_scale"), zero=scheme.group is not None)
        return QuantizedWeight(
            name=self._weight.name,
            precision=scheme.precision,
            shape=(outputs, inputs),
            tensors=self._tensors,
            scale_shape=(rows, columns),
            global_scale=1.0 if global_scale is None else global_scale,
            input_scale=input_scale,
            data_name=self._name(scheme.codes_role),
            scale_name=self._name("weight_scale"),
            input_scale_name=self._name("input_scale") if "input_scale" in scheme.tensors else None,
            by_token=scheme.by_token,
        )

    def _name(self, role: str) -> str:
        return self._weight.name.removesuffix("weight") + self._layout.names.get(role, role)

    def _scale_shapes(self) -> list[tuple[int, ...]]:
        scheme, (outputs, inputs) = self._scheme, self._weight.shape
        if scheme.group is None:
            return [*_SCALARS, (outputs, 1), (outputs,)]
        groups = inputs // scheme.group
        if scheme.precision is not Precision.INT4:
            return [(outputs, groups)]
        # One scale may hold for several groups.
        return [(outputs, count) for count in range(groups, 0, -1) if groups % count == 0]

    def _tensor(self, role: str, *shapes: tuple[int, ...]) -> TensorLocation:
        name, dtype = self._name(role), self._scheme.tensors[role]
        dtypes = FLOAT_TYPES if dtype in FLOAT_TYPES.values() else {TYPE_NAMES[dtype]: dtype}
        file, stored = self._stored[name]
        self._tensors[name] = locate(file, name, stored, dtypes, shapes, _AGAIN)
        return self._tensors[name]

    def _number(self, role: str) -> float:
        """The number in a tensor, exactly an fp32 number."""
        return _require_positive(self._tensor(role, *_SCALARS), self._name(role), zero=False).item()

    def _factor(self, role: str) -> float | None:
        """A global scale as a factor. None if the scheme has none."""
        if role not in self._scheme.tensors:
            return None
        number = self._number(role)
        return float(np.float32(1) / np.float32(number)) if self._layout.scales_divide else number

    def _check_shape(self) -> None:
        where = self._tensor("weight_shape", (2,))
        given, name = where.raw().view("<i8").tolist(), self._name("weight_shape")
        # No number depends on it.
        del self._tensors[name]
        if given != list(self._weight.shape):
            raise CheckpointError(
                f"{where.file}: {name} says {given}, but config.json calls for {list(self._weight.shape)}"
            )


def _require_positive(where: TensorLocation, name: str, *, zero: bool) -> NDArray[np.float32]:
    """Values of a tensor of scales. Raises: CheckpointError unless all are finite and above zero, or `zero`."""
    values = _as_float32(where)
    valid = np.isfinite(values) & ((values >= 0) if zero else (values > 0))
    if not valid.all():
        bad = values[~valid]
        raise CheckpointError(
            f"{where.file}: {name} holds {bad[0]:g}{f' and {bad.size - 1} more such' if bad.size > 1 else ''}, "
            f"expected finite scales {'of zero or more' if zero else 'above zero'}: {_AGAIN}"
        )
    return values


def _as_float32(where: TensorLocation) -> NDArray[np.float32]:
    raw = where.raw()
    tables = {DType.FLOAT8_E4M3FN: E4M3_VALUES, DType.UINT8: E8M0_VALUES}
    return tables[where.dtype][raw] if where.dtype in tables else as_float32(raw, where.dtype)
