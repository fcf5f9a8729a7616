"""Quantised checkpoints in the layouts of other tools, from their public descriptions and in NumPy alone.

Each writer takes the tiny float checkpoint, and tells what the tensors that it wrote stand for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from .checkpoints import tiny_checkpoint
from .quantized_reference import E2M1, Rounding, round_mxfp8, round_nvfp4, stored_tensors

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Change = Callable[[dict[str, Tensor]], object]


class Written(NamedTuple):
    """A checkpoint that was written."""

    path: Path
    values: dict[str, Tensor]
    """The quantised weights, fp32 by name."""
    roundings: dict[str, Rounding]
    """What products do to their inputs, by the name of the weight. Empty if they are not quantised."""


Floats = NDArray[np.float32]


def unchanged(tensors: dict[str, Tensor]) -> None:
    """Spoils nothing."""


def modelopt_fp8(directory: Path, *, by_channel: bool = False, change: Change = unchanged) -> Written:
    """`weight` F8_E4M3, `weight_scale` F32 [] and `input_scale` F32 [], those of q, k and v different.

    Args: `by_channel`: `weight_scale` [out] and scales of the input for each token, which are not stored.
    """
    tensors, values, roundings = {}, {}, {}
    for name, weight in _projections():
        index = PROJECTIONS.index(name.split(".")[-2])
        module, largest = name.removesuffix(".weight"), np.abs(weight).max(1) if by_channel else np.abs(weight).max()
        scale = torch.tensor(np.float32(largest / np.float32(448)))
        codes = (torch.from_numpy(weight) / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
        tensors |= {name: codes, f"{module}.weight_scale": scale}
        if not by_channel:
            tensors[f"{module}.input_scale"] = torch.tensor(0.03 + 0.001 * (index % 5))
        roundings[name] = _fp8_rounding(tensors.get(f"{module}.input_scale"))
        values[name] = codes.float() * scale.reshape(-1, 1)
    algorithm = "FP8_PER_CHANNEL_PER_TOKEN" if by_channel else "FP8"
    quantization = {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head", "*.z_proj", "*o_gate"],
    }
    _write(directory, tensors, change, hf_quant_config={"producer": {"name": "modelopt"}, "quantization": quantization})
    return Written(directory, values, roundings)


def modelopt_nvfp4(directory: Path, *, change: Change = unchanged) -> Written:
    """`weight` U8, block scales e4m3, `weight_scale_2` and `input_scale` F32 [], those of q, k and v different."""
    tensors, values, roundings = {}, {}, {}
    grid = np.array(E2M1, np.float32)
    for name, weight in _projections():
        index = PROJECTIONS.index(name.split(".")[-2])
        module = name.removesuffix(".weight")
        factor = np.float32(np.abs(weight).max() / (448 * 6) * (1 + 0.07 * (index % 3)))
        groups = weight.reshape(len(weight), -1, 16)
        stored = torch.from_numpy(np.abs(groups).max(-1) / 6 / factor).to(torch.float8_e4m3fn)
        scale = stored.float().numpy()[..., None] * factor
        steps = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)
        codes = np.abs(np.abs(steps)[..., None] - grid).argmin(-1)
        values[name] = torch.from_numpy((np.sign(steps) * grid[codes] * scale).reshape(weight.shape))
        nibbles = (codes + 8 * (steps < 0)).reshape(weight.shape).astype(np.uint8)
        tensors |= {
            name: torch.from_numpy(nibbles[:, ::2] | nibbles[:, 1::2] << 4),
            f"{module}.weight_scale": stored,
            f"{module}.weight_scale_2": torch.tensor(factor),
            f"{module}.input_scale": torch.tensor(2.0 ** -(5 + index % 3)),
        }
        roundings[name] = partial(round_nvfp4, divisor=1 / tensors[f"{module}.input_scale"])
    config = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
        "ignore": ["lm_head", "model.layers.*.self_attn.z_proj", "model.layers.*.self_attn.o_gate"],
    }
    _write(directory, tensors, change, quantization_config=config)
    return Written(directory, values, roundings)


def mxfp8(directory: Path, *, modelopt: bool = True, change: Change = unchanged, **fields: Any) -> Written:
    """`weight` F8_E4M3 and `weight_scale` U8, the exponent bytes of powers of two, gates too.

    Args: `modelopt`: by its `hf_quant_config.json`. Otherwise as compressed-tensors and auto-round say it. `fields` of
        the object that says it.
    """
    tensors, values, roundings = {}, {}, {}
    roles = (*PROJECTIONS, "z_proj", "o_gate")
    for name, weight in _projections(roles):
        groups = weight.reshape(len(weight), -1, 32)
        groups[0, 0] = 0
        mantissa, exponent = np.frexp(np.abs(groups).max(-1))
        # Some tools take a larger power than is needed.
        power = exponent - 9 + (mantissa > 0.875) + np.arange(groups.shape[1]) % 2
        power[0, 0] = -127
        codes = torch.from_numpy(np.ldexp(groups, -power[..., None])).to(torch.float8_e4m3fn)
        values[name] = torch.from_numpy(np.ldexp(codes.float().numpy(), power[..., None]).reshape(weight.shape))
        tensors |= {
            name: codes.reshape(weight.shape),
            f"{name}_scale": torch.from_numpy((power + 127).astype(np.uint8)),
        }
        roundings[name] = round_mxfp8
    if modelopt:
        said = {"quant_algo": "MXFP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"], **fields}
        _write(directory, tensors, change, roles=roles, hf_quant_config={"quantization": said})
        return Written(directory, values, roundings)
    arguments = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**arguments, "dynamic": False, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
        "input_activations": {**arguments, "dynamic": True},
    }
    said = {"quant_method": "compressed-tensors", "format": "mxfp8-quantized", "ignore": ["lm_head"], **fields}
    config = {**said, "config_groups": {"group_0": group}}
    _write(directory, tensors, change, roles=roles, quantization_config=config)
    return Written(directory, values, roundings)


def gptq(
    directory: Path,
    *,
    group: int = 128,
    version: str | None = None,
    scales: torch.dtype = torch.float16,
    change: Change = unchanged,
    **fields: Any,
) -> Written:
    """`qweight` I32 [in / 8, out], `qzeros`, `scales` [groups, out] and `g_idx`, by `quantize_config.json`.

    Args: `group` -1 for a scale by output; `version` of `checkpoint_format`.
    """
    tensors, values = {}, {}
    for name, weight in _projections():
        module, (outputs, inputs) = name.removesuffix(".weight"), weight.shape
        size = inputs if group == -1 else group
        codes, scale, values[name] = _int4(weight, size, scales)
        zero = 8 if version == "gptq_v2" else 7
        columns = codes.T.reshape(inputs // 8, 8, outputs)
        tensors |= {
            f"{module}.qweight": _words(columns[:, place] for place in range(8)),
            f"{module}.qzeros": torch.full(
                (inputs // size, outputs // 8), int(f"{zero}" * 8, 16) - (zero == 8) * 2**32
            ).to(torch.int32),
            f"{module}.scales": scale.T.contiguous(),
            f"{module}.g_idx": torch.arange(inputs, dtype=torch.int32) // size,
        }
    config = {"bits": 4, "group_size": group, "sym": True, "desc_act": False, **fields}
    _write(
        directory, tensors, change, quantize_config=config | ({} if version is None else {"checkpoint_format": version})
    )
    return Written(directory, values, {})


def awq(directory: Path, *, group: int = 128, change: Change = unchanged, **fields: Any) -> Written:
    """`qweight` I32 [in, out / 8] in AWQ's order of columns, `qzeros` of 8, `scales` F16 [groups, out]."""
    tensors, values = {}, {}
    for name, weight in _projections():
        module, (outputs, inputs) = name.removesuffix(".weight"), weight.shape
        codes, scale, values[name] = _int4(weight, group, torch.float16)
        by_input = codes.T.reshape(inputs, outputs // 8, 8)
        tensors |= {
            f"{module}.qweight": _words(by_input[..., column] for column in AWQ_ORDER),
            f"{module}.qzeros": torch.full((inputs // group, outputs // 8), -0x77777778, dtype=torch.int32),
            f"{module}.scales": scale.T.contiguous(),
        }
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True, **fields}
    _write(directory, tensors, change, quantization_config=config)
    return Written(directory, values, {})


def _fp8_rounding(scale: Tensor | None) -> Rounding:
    """By this scale. None: by one for each row."""

    def rounded(x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 448 if scale is None else scale
        return (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step

    return rounded


def _projections(roles: tuple[str, ...] = PROJECTIONS) -> Iterator[tuple[str, Floats]]:
    for name, weight in stored_tensors(tiny_checkpoint(2)).items():
        if name.split(".")[-2] in roles:
            yield name, weight.float().numpy()


def _int4(weight: Floats, group: int, scales: torch.dtype) -> tuple[NDArray[np.uint32], Tensor, Tensor]:
    """Codes plus 8 [out, in], scales [out, groups] as they are stored, and the numbers that these stand for."""
    groups = weight.reshape(len(weight), -1, group)
    scale = torch.from_numpy(np.abs(groups).max(-1) / 7.5).to(scales)
    wide = scale.float().numpy()[..., None]
    codes = np.clip(np.round(groups / wide), -8, 7)
    values = torch.from_numpy((codes * wide).reshape(weight.shape))
    return (codes + 8).reshape(weight.shape).astype(np.uint32), scale, values


def _words(nibbles: Iterator[NDArray[np.uint32]]) -> Tensor:
    """int32 of eight matrices of codes, the first in the lowest bits."""
    words = sum(codes << np.uint32(4 * place) for place, codes in enumerate(nibbles))
    return torch.from_numpy(np.asarray(words, np.uint32).view(np.int32).copy())


def _write(
    directory: Path,
    quantized: Mapping[str, Tensor],
    change: Change,
    *,
    roles: tuple[str, ...] = PROJECTIONS,
    quantization_config: dict[str, Any] | None = None,
    **files: dict[str, Any],
) -> None:
    source = tiny_checkpoint(2)
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    plain = {name: tensor for name, tensor in stored_tensors(source).items() if name.split(".")[-2] not in roles}
    tensors = plain | dict(quantized)
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    if quantization_config is not None:
        fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(fields | {"quantization_config": quantization_config})
        (directory / "config.json").write_text(text, encoding="utf-8")
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
