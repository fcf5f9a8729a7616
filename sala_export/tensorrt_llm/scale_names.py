"""Names of quantised tensors, as TensorRT-LLM's projections read them: those of ModelOpt.

| compressed-tensors | ModelOpt |
|---|---|
| `weight_packed` | `weight` |
| `weight_global_scale`, `input_global_scale`, which divide | `weight_scale_2`, `input_scale`, which multiply |
| `weight`, `weight_scale`, `input_scale` of fp8 | the same |
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.foreign_quantization import MODELOPT
from ..checkpoint.keymap import PACKED_ROLES
from ..errors import CheckpointError

_DIVIDES = ("weight_global_scale", "input_global_scale")
_SHARED = ("weight_scale_2", "input_scale")
"""What the projections of one product must have in common where `weight_scale_2` is there, which is nvfp4."""
_PRODUCTS = tuple(roles[:3] for roles in PACKED_ROLES)
"""Projections that TensorRT-LLM multiplies together: q, k and v, gate and up."""


def modelopt_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Give a checkpoint's tensors the names and numbers of ModelOpt. Others stay as they are, also if they are lazy.

    Args: `tensors` by name, each a Tensor or what safetensors opens lazily.
    Raises: CheckpointError if projections that are one product have different nvfp4 scales.
    """
    renamed = {}
    for name, value in tensors.items():
        module, _, role = name.rpartition(".")
        number = value
        if role in _DIVIDES:
            number = (1.0 / _whole(value).to(torch.float32)).reshape(())
        elif role in _SHARED and _is_scalar(value):
            number = _whole(value).reshape(())
        renamed[f"{module}.{MODELOPT.names.get(role, role)}"] = number
    _require_shared_scales(renamed)
    return renamed


def _whole(value: Any) -> Tensor:
    tensor: Tensor = value[...]
    return tensor


def _is_scalar(value: Any) -> bool:
    shape = value.shape if isinstance(value, Tensor) else value.get_shape()
    return all(extent == 1 for extent in shape)


def _require_shared_scales(tensors: Mapping[str, Any]) -> None:
    suffix = f".{_SHARED[0]}"
    modules = {name.removesuffix(suffix) for name in tensors if name.endswith(suffix)}
    for module in sorted(modules):
        parent, _, role = module.rpartition(".")
        others = next((roles for roles in _PRODUCTS if role == roles[0]), ())[1:]
        for other, scale in itertools.product(others, _SHARED):
            first, second = (_number(tensors, f"{parent}.{each}.{scale}") for each in (role, other))
            if first != second:
                raise CheckpointError(
                    f"{parent}.{other}.{scale} is {second}, that of {role} is {first}: TensorRT-LLM multiplies both in "
                    "one product. Quantise with sala-export quantize --precision nvfp4, which gives them one scale"
                )


def _number(tensors: Mapping[str, Any], name: str) -> float | None:
    return float(tensors[name]) if name in tensors else None
