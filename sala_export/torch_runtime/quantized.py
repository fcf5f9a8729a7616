"""Quantised weights of a checkpoint or a bundle, and the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bundle.manifest import Manifest, WeightInput, WeightPart
from ..checkpoint.quantization import SCHEMES
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.tensor_location import TensorLocation
from ..checkpoint.torch_tensor import read_tensor
from ..model_source import ModelSource
from ..numerics.weights import dequantize
from ..specs import Precision

_STORED_RECIPROCAL, _STORED_SCALE = "input_global_scale", "input_scale"
"""Names of the scale of an nvfp4 input beside the codes: that of compressed-tensors and that of ModelOpt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeight:
    """A quantised weight [out, in] where it lies: `decode(codes) * scale * global_scale`."""

    precision: Precision
    codes: TensorLocation
    scale: TensorLocation
    """Of one number, or of shape [blocks along the output, blocks along the input]."""
    global_scale: float
    input_scale: float | None
    """See `QuantizedWeight.input_scale`. None also if each row of the input has a scale of its own."""

    @property
    def rounds_input(self) -> bool:
        return SCHEMES[self.precision].input_type is not None

    def values(self) -> Tensor:
        """Read the weight and dequantise it, fp32 [out, in]. Raises: as `TensorLocation.raw`."""
        scale = read_tensor(self.scale)
        scale = scale if scale.dim() == 2 else scale.view(1, 1)
        return dequantize(self.precision, read_tensor(self.codes), scale, self.global_scale)


def quantized_weights_of(source: ModelSource) -> dict[str, StoredWeight]:
    """The quantised weights of a model by name, `...q_proj.weight`. Empty if it is not quantised.

    Raises: as `ModelSource.weights`.
    """
    checkpoint = source.weights()
    if source.bundle is None or source.other_weights is not None:
        return {name: _of_checkpoint(weight) for name, weight in checkpoint.quantized.items()}
    return dict(_of_bundle(source.bundle.manifest, checkpoint.locations))


def _of_checkpoint(weight: QuantizedWeight) -> StoredWeight:
    return StoredWeight(
        precision=weight.precision,
        codes=weight.data,
        scale=weight.scale,
        global_scale=weight.global_scale,
        input_scale=weight.input_scale,
    )


def _of_bundle(manifest: Manifest, tensors: Mapping[str, TensorLocation]) -> Iterator[tuple[str, StoredWeight]]:
    """From what the CPU's graph takes, which says how each weight is dequantised."""
    inputs = {weight.spec.name: weight for weight in manifest.graph.cpu.weights}
    for weight in inputs.values():
        scales = inputs.get(f"{weight.spec.name.removesuffix('.weight')}.input_scale")
        for index, part in enumerate(weight.parts):
            how = part.dequantization
            if how is not None:
                yield (
                    f"{_module(part)}.weight",
                    StoredWeight(
                        precision=how.precision,
                        codes=tensors[part.tensor],
                        scale=tensors[how.scale],
                        global_scale=how.global_scale,
                        input_scale=_input_scale(how.precision, part, index, scales, tensors),
                    ),
                )


def _input_scale(
    precision: Precision,
    part: WeightPart,
    index: int,
    scales: WeightInput | None,
    tensors: Mapping[str, TensorLocation],
) -> float | None:
    if scales is not None:
        return _number(tensors[scales.parts[index].tensor])
    if precision is not Precision.NVFP4:
        return None
    reciprocal, scale = (tensors.get(f"{_module(part)}.{name}") for name in (_STORED_RECIPROCAL, _STORED_SCALE))
    if reciprocal is not None:
        return float(torch.tensor(1.0) / torch.tensor(_number(reciprocal)))
    return None if scale is None else _number(scale)


def _module(part: WeightPart) -> str:
    return part.tensor.rpartition(".")[0]


def _number(where: TensorLocation) -> float:
    return float(read_tensor(where).to(torch.float32).view(-1)[0])
