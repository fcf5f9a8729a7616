"""Quantised checkpoints as another program might write them: round to nearest, tensors sorted by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sala_export.checkpoint.quantization import SCHEMES, Quantization
from sala_export.specs import Precision

from .checkpoints import tiny_checkpoint
from .quantized_reference import stored_tensors
from .scaled_operators import quantized

PACKS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
LIMITS = {Precision.FP8: 448.0, Precision.INT8: 127.0}


def write_quantized_checkpoint(
    directory: Path,
    precision: Precision,
    *,
    layers: int = 2,
    per_channel: bool = False,
    shared_scales: bool = True,
    ignore: tuple[str, ...] = ("re:.*z_proj", "re:.*o_gate", "lm_head"),
    change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
) -> Path:
    """The tiny checkpoint in fp8, int8 or mxfp8, in one file; returns `directory`.

    Args: `per_channel` scales; `shared_scales`: the modules of a pack have one weight scale; `change` spoils tensors.
    mxfp8 has one form alone.
    """
    source = tiny_checkpoint(layers)
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    quantization = Quantization(scheme=SCHEMES[precision], ignore=ignore)
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    strategy = None if precision is Precision.MXFP8 else "channel" if per_channel else "tensor"
    fields["quantization_config"] = quantization.to_dict(weight_strategy=strategy)
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    plain = stored_tensors(source)
    for name, weight in plain.items():
        if not quantization.covers(name):
            tensors[name] = weight
            continue
        module, wide = name.removesuffix(".weight"), weight.to(torch.float32)
        if precision is Precision.MXFP8:
            codes, words = quantized(wide.numpy())
            tensors[name] = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
            scales = np.ascontiguousarray(np.moveaxis(words, 0, -1)).view(np.uint8)
            tensors[f"{module}.weight_scale"] = torch.from_numpy(scales)
            continue
        scale = _scale(plain, name, per_channel, shared_scales) / LIMITS[precision]
        steps = wide / scale
        tensors[name] = steps.to(torch.float8_e4m3fn) if precision is Precision.FP8 else steps.round().to(torch.int8)
        tensors[f"{module}.weight_scale"] = scale if per_channel else scale.reshape(1)
        tensors[f"{module}.input_scale"] = torch.tensor([16.0 / LIMITS[precision]])
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def _scale(plain: dict[str, Tensor], name: str, per_channel: bool, shared: bool) -> Tensor:
    """Largest magnitude by row [out, 1], or of the tensor, or of its whole pack."""
    if per_channel:
        return plain[name].to(torch.float32).abs().amax(1, keepdim=True)
    parent, _, role = name.removesuffix(".weight").rpartition(".")
    pack = next((pack for pack in PACKS if role in pack), (role,))
    if not shared:
        # The largest weights of random modules are equal.
        return plain[name].to(torch.float32).abs().amax() * (1 + 0.1 * pack.index(role))
    return torch.stack(
        [plain[f"{parent}.{each}.weight".removeprefix(".")].to(torch.float32).abs().amax() for each in pack]
    ).amax()
