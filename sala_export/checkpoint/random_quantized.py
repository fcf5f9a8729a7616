"""Quantised random weights: drawn from the quantised normal distribution itself, so that no weight is ever wider.

Scales need no calibration, because `random_weights` knows how its tensors and the inputs of its projections are spread.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..numerics.number_formats import E2M1_VALUES, E4M3_MAX, E4M3_VALUES
from ..specs import DType, Precision
from .keymap import Weight
from .quantization import Quantization, Scheme
from .random_weights import RandomWeights, normal_quantiles
from .safetensors_header import TYPE_NAMES
from .safetensors_writer import NewTensor

_WEIGHT_LIMIT = 4.5
"""In standard deviations; the outermost of the 65536 intervals of `random_weights` lies at 4.3."""
_INPUT_LIMIT = 16.0
"""Inputs of projections are of order 1: this covers normed rows, attention outputs and gated products."""
_GROUP_LIMIT = 2.5
"""Of int4 and nvfp4, in standard deviations: about the largest of a group of calibrated weights."""
_BLOCK_SCALES = 64
"""Different scales among the groups of a tensor, from 1 down to half of the largest."""

_HALVED_SCALES = math.sqrt((1 + 1 / 4) / 2)
"""Root mean square of scales of which half are half of the largest, over the largest."""

Codes = NDArray[np.uint8]


class RandomQuantizedWeights:
    """The tensors that stand for the weights that a `Quantization` covers."""

    def __init__(self, random: RandomWeights, quantization: Quantization) -> None:
        self.random = random
        self.scheme = quantization.scheme

    def pack_tensors(self, pack: tuple[Weight, ...]) -> list[NewTensor]:
        """All tensors of a pack, weight by weight."""
        if self.scheme.precision is Precision.MXFP8:
            return [tensor for weight in pack for tensor in self._with_powers_of_two(weight)]
        # A pack shares its scales, which follow from its widest weight.
        std = max(self.random.distribution(weight).std for weight in pack)
        tensors = self._with_groups if self.scheme.group else self._with_one_scale
        return [tensor for weight in pack for tensor in tensors(weight, std)]

    def _with_one_scale(self, weight: Weight, std: float) -> tuple[NewTensor, ...]:
        scale = _WEIGHT_LIMIT * std / self.scheme.largest
        table = _codes(self.scheme, self.random.distribution(weight).std / scale)
        codes = NewTensor(
            name=weight.name,
            dtype=self._type_name(self.scheme.codes_role),
            shape=weight.shape,
            blocks=lambda: (table[draws] for draws in self.random.draws(weight)),
        )
        scales = {"weight_scale": scale, "input_scale": _INPUT_LIMIT / self.scheme.largest}
        return (codes, *(_scalar(weight, role, scales[role]) for role in scales if role in self.scheme.tensors))

    def _with_powers_of_two(self, weight: Weight) -> tuple[NewTensor, ...]:
        """Scales of two neighbouring powers, and codes of such a spread that a scale fits the largest of its group."""
        own, largest, (outputs, inputs) = self.random.distribution(weight).std, self.scheme.largest, weight.shape
        exponent = math.ceil(math.log2(_GROUP_LIMIT * own / (largest * _HALVED_SCALES)))
        table = _codes(self.scheme, own / (2.0**exponent * _HALVED_SCALES))
        # The exponent bytes of e8m0.
        scales = np.array([exponent + 127, exponent + 126], np.uint8).repeat(_BLOCK_SCALES // 2)
        groups = Weight(name=_sibling(weight, "weight_scale"), shape=(outputs, inputs // (self.scheme.group or 1)))
        codes = NewTensor(
            name=weight.name,
            dtype=self._type_name(self.scheme.codes_role),
            shape=weight.shape,
            blocks=lambda: (table[draws] for draws in self.random.draws(weight)),
        )
        return codes, self._scales_of(groups, scales)

    def _scales_of(self, groups: Weight, scales: NDArray[np.uint8] | NDArray[np.uint16]) -> NewTensor:
        """The tensor of the scales of groups, drawn from `scales`."""
        return NewTensor(
            name=groups.name,
            dtype=self._type_name("weight_scale"),
            shape=groups.shape,
            blocks=lambda: (scales[draws % _BLOCK_SCALES] for draws in self.random.draws(groups)),
        )

    def _with_groups(self, weight: Weight, std: float) -> tuple[NewTensor, ...]:
        scheme, largest, (outputs, inputs) = self.scheme, self.scheme.largest, weight.shape
        own = self.random.distribution(weight).std
        table = _codes(scheme, largest / _GROUP_LIMIT)
        # Means of group scales are three quarters of the largest.
        scale = _GROUP_LIMIT * own / largest / 0.75
        divisor = E4M3_MAX * largest / (_WEIGHT_LIMIT * std)
        has_global_scale = "weight_global_scale" in scheme.tensors
        scales = _e4m3_scales(scale * divisor) if has_global_scale else _bfloat16_scales(scale)
        groups = Weight(name=_sibling(weight, "weight_scale"), shape=(outputs, inputs // (scheme.group or 1)))
        packed = NewTensor(
            name=_sibling(weight, scheme.codes_role),
            dtype=self._type_name(scheme.codes_role),
            shape=(outputs, inputs // scheme.codes_per_element),
            blocks=lambda: (_nibbles(table[draws]) for draws in self.random.draws(weight)),
        )
        group_scales = self._scales_of(groups, scales)
        if not has_global_scale:
            shape = np.array(weight.shape, np.int64)
            return (
                packed,
                group_scales,
                NewTensor(name=_sibling(weight, "weight_shape"), dtype="I64", shape=(2,), blocks=lambda: [shape]),
            )
        return (
            packed,
            group_scales,
            _scalar(weight, "weight_global_scale", divisor),
            _scalar(weight, "input_global_scale", E4M3_MAX * largest / _INPUT_LIMIT),
        )

    def _type_name(self, role: str) -> str:
        return TYPE_NAMES[self.scheme.tensors[role]]


def _sibling(weight: Weight, role: str) -> str:
    return weight.name.removesuffix("weight") + role


def _scalar(weight: Weight, role: str, value: float) -> NewTensor:
    data = np.array([value], np.float32)
    return NewTensor(name=_sibling(weight, role), dtype="F32", shape=(1,), blocks=lambda: [data])


def _codes(scheme: Scheme, std: float) -> Codes:
    """Code by 16 random bits of a normal number of standard deviation `std`, in units of the scale."""
    values = np.clip(normal_quantiles() * std, -scheme.largest, scheme.largest)
    match scheme.input_type:
        case DType.FLOAT8_E4M3FN:
            codes = _nearest(E4M3_VALUES[:127], np.abs(values)) | (values < 0) * 128
        case DType.INT8:
            codes = np.rint(values).astype(np.int8).view(np.uint8)
        case None:
            codes = np.rint(values) + 8
        case _:
            codes = _nearest(np.array(E2M1_VALUES, np.float32), np.abs(values)) | (values < 0) * 8
    return codes.astype(np.uint8)


def _nearest(ascending: NDArray[np.float32], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest of `ascending`; of two equally near, the even index, as IEEE rounding has it."""
    above = np.clip(np.searchsorted(ascending, values), 1, len(ascending) - 1)
    low, high = values - ascending[above - 1], ascending[above] - values
    return np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)


def _nibbles(codes: Codes) -> Codes:
    """Two codes of four bits per byte, the first in the low bits."""
    packed: Codes = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed


def _bfloat16_scales(largest: float) -> NDArray[np.uint16]:
    return (_spread(largest).view(np.uint32) >> 16).astype("<u2")


def _e4m3_scales(largest: float) -> Codes:
    return _nearest(E4M3_VALUES[:127], _spread(min(largest, E4M3_MAX)).astype(np.float64)).astype(np.uint8)


def _spread(largest: float) -> NDArray[np.float32]:
    return np.linspace(largest, largest / 2, _BLOCK_SCALES, dtype=np.float32)
