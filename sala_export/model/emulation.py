"""Quantised products in torch, rounded exactly as the formats round: what an engine is to compute.

Operands take the values that their codes stand for, and the product of these is summed in fp32. An engine multiplies
the codes and scales the sums, which differs by the rounding of sums alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoint.quantization import SCHEMES
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.torch_tensor import read_tensor
from ..numerics.block_scales import mxfp8_values, quantize_mxfp8
from ..numerics.number_formats import E4M3_MAX
from ..numerics.rounding import round_e4m3, round_int8
from ..numerics.weights import dequantize, nvfp4_codes, nvfp4_values
from ..specs import Precision

_LEAST_SCALE = 1e-30
"""In place of the scale of a row of zeros."""


def fake_quantize(x: Tensor, precision: Precision, scale: Tensor | float | None) -> Tensor:
    """The values that an input [..., in] of a product has after quantisation, fp32.

    Args: `scale` multiplies codes: the input scale of fp8 and int8, the reciprocal of NVFP4's `input_global_scale`.
    None where scales are taken here: of each row in fp8 and int8, its largest magnitude over the largest code. MXFP8
    always takes those of its groups here. int4 leaves inputs alone.
    """
    wide = x.to(torch.float32)
    if precision is Precision.MXFP8:
        return mxfp8_values(*quantize_mxfp8(wide))
    if not SCHEMES[precision].rounds_input:
        return wide
    step = _row_scale(wide, precision) if scale is None else scale
    match precision:
        case Precision.FP8:
            return round_e4m3(wide / step).to(torch.float32) * step
        case Precision.INT8:
            return round_int8(wide / step) * step
        case _:
            return nvfp4_values(*nvfp4_codes(wide, step), step)


def _row_scale(x: Tensor, precision: Precision) -> Tensor:
    return (x.abs().amax(-1, keepdim=True) / SCHEMES[precision].largest).clamp(min=_LEAST_SCALE)


class EmulatedLinear(nn.Module):
    """A quantised projection without bias; takes and gives the type of the model.

    Its weight stays as it is stored and is dequantised at each call: a model takes the
    memory of its checkpoint.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: QuantizedWeight, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self.precision = weight.precision
        # The e4m3 scale of a group multiplies its codes.
        self._largest_code = weight.scheme.largest * (E4M3_MAX if weight.scheme.group else 1.0)
        self.out_features, self.in_features = weight.shape
        self.global_scale, self.input_scale = weight.global_scale, weight.input_scale
        self._rounds_input = weight.rounds_input
        self.register_buffer("codes", read_tensor(weight.data).to(device), persistent=False)
        self.register_buffer("scale", read_tensor(weight.scale).view(weight.scale_shape).to(device), persistent=False)

    @property
    def input_limit(self) -> float | None:
        """The largest magnitude that inputs keep. None if they keep all, as they do where scales follow from them."""
        return None if self.input_scale is None else self.input_scale * self._largest_code

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize(self.precision, self.codes, self.scale, self.global_scale)
        if not self._rounds_input:
            # A weight-only engine multiplies in the type of the activations.
            return functional.linear(x, weight.to(x.dtype))
        scale = None
        if self.input_scale is not None:
            # On the device and in fp32, as the scale of the graph is.
            scale = torch.tensor(self.input_scale, dtype=torch.float32, device=x.device)
        return functional.linear(fake_quantize(x, self.precision, scale), weight).to(x.dtype)


def emulate(model: nn.Module, quantized: Mapping[str, QuantizedWeight], device: str | torch.device = "cpu") -> None:
    """Put an emulated projection in the place of each that is quantised; `quantized` by weight, as `model` names it."""
    for name, weight in quantized.items():
        model.set_submodule(name.removesuffix(".weight"), EmulatedLinear(weight, device))
