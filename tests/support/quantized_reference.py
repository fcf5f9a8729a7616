"""Quantised layers in torch, from the description of the format alone: no code of the toolkit decodes or rounds here.

Tensors are read with the safetensors library, weights become fp32 numbers, and the inputs of quantised products are
rounded to the nearest number of their type, ties to even, by search in a table of its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import weights
from sala_export.model import layers
from sala_export.model.sala import SalaForCausalLM

from .stored_products import mxfp8_inputs

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

Rounding = Callable[[Tensor], Tensor]


def stored_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name."""
    found = {}
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def dequantized(stored: dict[str, Tensor], module: str, format_: str) -> Tensor:
    """The weight of a quantised module, fp32 [out, in]."""
    scale = stored[f"{module}.weight_scale"].to(torch.float32)
    match format_:
        case "mxfp8-quantized":
            powers = torch.exp2(scale.double() - 127).repeat_interleave(32, 1)
            return (stored[f"{module}.weight"].double() * powers).float()
        case "float-quantized" | "int-quantized":
            return stored[f"{module}.weight"].to(torch.float32) * scale.reshape(-1, 1)
        case "pack-quantized":
            words, (rows, columns) = stored[f"{module}.weight_packed"], stored[f"{module}.weight_shape"].tolist()
            nibbles = [(words >> (4 * i)) & 15 for i in range(8)]
            codes = torch.stack(nibbles, -1).reshape(rows, columns).to(torch.float32) - 8
            return codes * scale.repeat_interleave(128, 1)
        case _:
            pairs = stored[f"{module}.weight_packed"].to(torch.int64)
            codes = torch.stack((pairs % 16, pairs // 16), -1).flatten(1)
            values = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
            return values * scale.repeat_interleave(16, 1) / stored[f"{module}.weight_global_scale"]


def rounding(stored: dict[str, Tensor], module: str, format_: str) -> Rounding | None:
    """What a quantised product does to its input; None in int4."""
    if format_ == "pack-quantized":
        return None
    if format_ == "mxfp8-quantized":
        return round_mxfp8
    if format_ == "nvfp4-pack-quantized":
        divisor = stored[f"{module}.input_global_scale"]
        return lambda x: round_nvfp4(x, divisor)
    scale = stored[f"{module}.input_scale"]
    if format_ == "int-quantized":
        return lambda x: torch.round(x / scale).clamp(-128, 127) * scale
    return lambda x: (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32) * scale


def round_mxfp8(x: Tensor) -> Tensor:
    """See `mxfp8_inputs`; fp32."""
    return torch.from_numpy(mxfp8_inputs(x.float().cpu().numpy())).float().to(x.device)


def round_nvfp4(x: Tensor, divisor: Tensor) -> Tensor:
    groups = x.unflatten(-1, (-1, 16))
    scale = (groups.abs().amax(-1, keepdim=True) * divisor / 6).clamp(max=448).to(torch.float8_e4m3fn)
    wide = scale.to(torch.float32) / divisor
    ratio = torch.where(wide > 0, groups / wide, 0.0)
    distance = (ratio.abs()[..., None] - torch.tensor(E2M1)).abs()
    # Of two equally near, the one with the even code.
    odd = torch.arange(8) % 2
    nearest = torch.where(distance == distance.amin(-1, keepdim=True), odd, 2).argmin(-1)
    return (torch.tensor(E2M1)[nearest] * ratio.sign() * wide).flatten(-2)


@contextmanager
def quantized_model(checkpoint: Path, *, round_inputs: bool = True) -> Iterator[SalaForCausalLM]:
    """The fp32 model of a quantised checkpoint, its products emulated as long as the context lasts.

    Args: `round_inputs`: False quantises the weights alone.
    """
    fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    format_ = fields["quantization_config"]["format"]
    stored, config = stored_tensors(checkpoint), SalaConfig.from_dict(fields)
    values, roundings = {}, {}
    for weight in weights(config):
        module = weight.name.removesuffix(".weight")
        if f"{module}.weight_scale" not in stored:
            values[weight.name] = stored[weight.name].to(torch.float32)
            continue
        values[weight.name] = dequantized(stored, module, format_)
        found = rounding(stored, module, format_) if round_inputs else None
        if found is not None:
            roundings[weight.name] = found
    with emulated_model(config, values, roundings) as model:
        yield model


@contextmanager
def emulated_model(
    config: SalaConfig, values: Mapping[str, Tensor], roundings: Mapping[str, Rounding]
) -> Iterator[SalaForCausalLM]:
    """The model of these fp32 weights, which rounds inputs of products by the names of their weights."""
    by_address = {values[name].data_ptr(): rounding for name, rounding in roundings.items()}
    with torch.device("meta"):
        model = SalaForCausalLM(config)
    model.load_state_dict(values, assign=True)

    def emulated(linear: layers.Linear, x: Tensor) -> Tensor:
        found = by_address.get(linear.weight.data_ptr())
        return functional.linear(x if found is None else found(x), linear.weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers.Linear, "forward", emulated)
        yield model.requires_grad_(False).eval()
