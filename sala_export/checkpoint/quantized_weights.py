"""The tensors of quantised projections: which there must be, where they lie, and that their scales make sense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, UnsupportedError
from ..files import OpenedFile
from ..numerics.number_formats import E4M3_VALUES
from ..specs import DType, Precision
from .keymap import GATE_ROLES, Weight, packs
from .quantization import QUANTIZABLE_ROLES, SCHEMES, Quantization, Scheme
from .safetensors_header import TYPE_NAMES, StoredTensor
from .tensor_location import TensorLocation, locate

_AGAIN = "quantise the original model with sala-export quantize"

Found = Mapping[str, tuple[OpenedFile, StoredTensor]]
"""File and header entry of every tensor that is wanted, by name."""


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
    reciprocal of the stored `input_global_scale`. None: activations are not quantised."""

    @property
    def scheme(self) -> Scheme:
        return SCHEMES[self.precision]

    @property
    def data_name(self) -> str:
        """Name of the tensor of codes."""
        return self._tensor_name(self.scheme.codes_role)

    @property
    def scale_name(self) -> str:
        return self._tensor_name("weight_scale")

    @property
    def input_scale_name(self) -> str:
        """Name of the scale of the input, in fp8 and int8."""
        return self._tensor_name("input_scale")

    @property
    def data(self) -> TensorLocation:
        return self.tensors[self.data_name]

    @property
    def scale(self) -> TensorLocation:
        return self.tensors[self.scale_name]

    def scales(self) -> NDArray[np.float32]:
        """The scales [blocks along the output, blocks along the input], without `global_scale`."""
        return _as_float32(self.scale).reshape(self.scale_shape)

    def _tensor_name(self, role: str) -> str:
        return self.name.removesuffix("weight") + role


def tensor_names(weight: Weight, quantization: Quantization) -> tuple[str, ...]:
    """The tensors that a checkpoint holds in place of a quantised weight."""
    return tuple(weight.name.removesuffix("weight") + role for role in quantization.scheme.tensors)


def quantized_weights(
    all_weights: Iterable[Weight], quantization: Quantization, found: Found
) -> dict[str, QuantizedWeight]:
    """Check the tensors of every weight that `quantization` covers; returns them by the name of the weight.

    Raises: UnsupportedError for a module that cannot be quantised; CheckpointError naming file and tensor.
    """
    covered = [weight for weight in all_weights if quantization.covers(weight.name)]
    for weight in covered:
        if weight.role not in (*QUANTIZABLE_ROLES, *GATE_ROLES):
            raise UnsupportedError(f"{weight.name} is quantised: only projections of layers may be, list it in ignore")
        group = quantization.scheme.group or 1
        if weight.shape[1] % group:
            raise UnsupportedError(
                f"{weight.name} has {weight.shape[1]} inputs, no multiple of the groups of {group} in "
                f"{quantization.precision}: quantise to fp8 or int8"
            )
    quantized = {weight.name: _quantized_weight(weight, quantization.scheme, found) for weight in covered}
    _check_packs(all_weights, quantized)
    return quantized


_SCALARS = ((1,), ())


def _quantized_weight(weight: Weight, scheme: Scheme, found: Found) -> QuantizedWeight:
    (outputs, inputs), module = weight.shape, weight.name.removesuffix("weight")
    tensors: dict[str, TensorLocation] = {}

    def tensor(role: str, *shapes: tuple[int, ...]) -> TensorLocation:
        name, dtype = module + role, scheme.tensors[role]
        tensors[name] = locate(found[name][0], name, found[name][1], {TYPE_NAMES[dtype]: dtype}, shapes, _AGAIN)
        return tensors[name]

    def scalar(role: str) -> float | None:
        """The number in a tensor, if the scheme has it."""
        if role not in scheme.tensors:
            return None
        return _require_positive(tensor(role, *_SCALARS), module + role, zero=False).item()

    tensor(scheme.codes_role, (outputs, inputs // scheme.codes_per_element))
    scales = [(outputs, inputs // scheme.group)] if scheme.group else [*_SCALARS, (outputs, 1)]
    scale = tensor("weight_scale", *scales)
    if "weight_shape" in scheme.tensors:
        _check_shape(tensor("weight_shape", (2,)), weight)
        del tensors[f"{module}weight_shape"]
    global_scale = _reciprocal(scalar("weight_global_scale"))
    input_scale = scalar("input_scale") or _reciprocal(scalar("input_global_scale"))
    blocks = (1, 1) if scale.shape in _SCALARS else (scale.shape[0], scale.shape[1])
    _require_positive(scale, f"{module}weight_scale", zero=scheme.group is not None)
    return QuantizedWeight(
        name=weight.name,
        precision=scheme.precision,
        shape=(outputs, inputs),
        tensors=tensors,
        scale_shape=blocks,
        global_scale=1.0 if global_scale is None else global_scale,
        input_scale=input_scale,
    )


def _reciprocal(value: float | None) -> float | None:
    return None if value is None else float(np.float32(1) / np.float32(value))


def _check_shape(where: TensorLocation, weight: Weight) -> None:
    given = where.raw().view("<i8").tolist()
    if given != list(weight.shape):
        name = weight.name.removesuffix("weight") + "weight_shape"
        raise CheckpointError(f"{where.file}: {name} says {given}, but config.json calls for {list(weight.shape)}")


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
    match where.dtype:
        case DType.FLOAT32:
            return raw.view("<f4").astype(np.float32, copy=False)
        case DType.BFLOAT16:
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case _:
            return E4M3_VALUES[raw]


def _check_packs(all_weights: Iterable[Weight], quantized: Mapping[str, QuantizedWeight]) -> None:
    """What one product of the graph takes together must be quantised together."""
    for pack in packs(all_weights):
        own = [weight.name for weight in pack if weight.role not in GATE_ROLES]
        inside = [quantized[weight.name] for weight in pack if weight.name in quantized]
        if inside and not all(name in quantized for name in own):
            apart = ", ".join(name for name in own if name not in quantized)
            raise CheckpointError(
                f"{inside[0].name} is quantised, but {apart}, of the same product, not: list all in ignore or none"
            )
        if not inside:
            continue
        for what, values in (
            ("input_scale", [weight.input_scale for weight in inside]),
            ("weight_global_scale", [weight.global_scale for weight in inside]),
        ):
            if len(set(values)) > 1:
                raise CheckpointError(
                    f"{inside[0].data.file}: {', '.join(weight.name for weight in inside)} are one product, but their "
                    f"scales {what} differ: {_AGAIN}"
                )
