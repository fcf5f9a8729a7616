"""Quantised weights of a checkpoint or a bundle, and the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bundle.manifest import MANIFEST_FILE, Manifest
from ..checkpoint.quantization import SCHEMES
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.tensor_location import TensorLocation
from ..checkpoint.torch_tensor import read_tensor
from ..errors import BundleError
from ..model_source import ModelSource
from ..numerics.weights import dequantize
from ..specs import Precision

_PACKED, _SCALE = "weight_packed", "weight_scale"
"""Names of the codes of a quantised weight, which else are `weight`, and of its scales."""
_GLOBAL_SCALES = ("weight_global_scale", "weight_scale_2")
_INPUT_SCALES = ("input_global_scale", "input_scale")
"""What compressed-tensors and ModelOpt call the same factor of nvfp4, where the first is stored as its reciprocal. fp8
and int8 have `input_scale` too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeight:
    """A quantised weight [out, in] where it lies: `decode(codes) * scale * global_scale`."""

    precision: Precision
    codes: TensorLocation
    scale: TensorLocation
    """Scales: a single one, or [blocks along the output, blocks along the input]."""
    global_scale: float
    input_scale: float | None
    """See `QuantizedWeight.input_scale`."""

    @property
    def rounds_input(self) -> bool:
        """See `QuantizedWeight.rounds_input`."""
        return SCHEMES[self.precision].rounds_input

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
    """From the tensors that stand for a weight, which have its module in common."""
    for name, scale in tensors.items():
        module, _, role = name.rpartition(".")
        if role != _SCALE:
            continue
        codes = tensors.get(f"{module}.{_PACKED}") or tensors.get(f"{module}.weight")
        if codes is None:
            raise BundleError(f"{MANIFEST_FILE} has {name} and no codes beside it (build the bundle again)")
        yield (
            f"{module}.weight",
            StoredWeight(
                precision=manifest.precision,
                codes=codes,
                scale=scale,
                global_scale=_factor(tensors, module, *_GLOBAL_SCALES) or 1.0,
                input_scale=_factor(tensors, module, *_INPUT_SCALES),
            ),
        )


def _factor(tensors: Mapping[str, TensorLocation], module: str, reciprocal: str, scale: str) -> float | None:
    """The number of the tensor `scale` of a module, or one over that of `reciprocal`, in fp32. None without either."""
    if divisor := tensors.get(f"{module}.{reciprocal}"):
        return float(torch.tensor(1.0) / torch.tensor(_number(divisor)))
    factor = tensors.get(f"{module}.{scale}")
    return None if factor is None else _number(factor)


def _number(where: TensorLocation) -> float:
    return float(read_tensor(where).to(torch.float32).view(-1)[0])
