"""Writes `hf_quant_config.json`, by which TensorRT-LLM knows how a checkpoint is quantised.

For example, `python -m sala_export.tensorrt_llm.quant_config quantized` for a directory of `sala-export quantize`.
TensorRT-LLM reads the `quantization_config` of compressed-tensors too, but of fp8 only with scales for each channel or
block, and not every version reads expressions among the modules to leave out. In this file every module is named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..checkpoint.keymap import EMBEDDING, PACKED_ROLES, weights
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.reader import Checkpoint
from ..errors import RequestError, SalaError, UnsupportedError
from ..installation import VERSION
from ..specs import Precision
from ..staging import staged_file

FILE = "hf_quant_config.json"
_SERVED = "TensorRT-LLM is served fp8 and nvfp4: quantise the original model with sala-export quantize"


def quant_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file says of a checkpoint.

    Raises: RequestError if it is not quantised, UnsupportedError if TensorRT-LLM has no such product.
    """
    if not checkpoint.quantized:
        raise RequestError(f"{checkpoint.directory} is not quantised: TensorRT-LLM needs no {FILE} for it")
    algorithms = {_algorithm(weight) for weight in checkpoint.quantized.values()}
    if len(algorithms) > 1:
        raise UnsupportedError(f"{checkpoint.directory}: {' and '.join(sorted(algorithms))} together; {_SERVED}")
    projections = [
        weight.name.removesuffix(".weight")
        for weight in weights(checkpoint.config)
        if len(weight.shape) == 2 and weight.name != EMBEDDING
    ]
    plain = [module for module in projections if f"{module}.weight" not in checkpoint.quantized]
    _require_whole_products(projections, plain)
    group = next(iter(checkpoint.quantized.values())).scheme.group
    return {
        "producer": {"name": "sala-export", "version": VERSION},
        "quantization": {
            "quant_algo": algorithms.pop(),
            "kv_cache_quant_algo": None,
            **({"group_size": group} if group else {}),
            "exclude_modules": plain,
        },
    }


def _algorithm(weight: QuantizedWeight) -> str:
    by_channel = weight.scale_shape[0] > 1
    match weight.precision:
        case Precision.NVFP4:
            return "NVFP4"
        case Precision.FP8 if weight.by_token and by_channel:
            return "FP8_PER_CHANNEL_PER_TOKEN"
        case Precision.FP8 if not weight.by_token and not by_channel:
            return "FP8"
    what = "fp8 with other scales" if weight.precision is Precision.FP8 else weight.precision
    raise UnsupportedError(f"{weight.name} is {what}; {_SERVED}")


def _require_whole_products(projections: list[str], plain: list[str]) -> None:
    """q, k and v are one product there, gate and up another: all of one are quantised, or none."""
    for module in projections:
        parent, _, role = module.rpartition(".")
        for roles in (roles[:3] for roles in PACKED_ROLES):
            if role in roles and (module in plain) != (f"{parent}.{roles[0]}" in plain):
                raise UnsupportedError(f"{module} is quantised otherwise than {roles[0]} beside it; {_SERVED}")


def write_quant_config(directory: Path) -> Path:
    """Write the file into a checkpoint directory. Returns: its path.

    Raises: as `Checkpoint.open` and `quant_config`, RequestError if the file is there or cannot be written.
    """
    path = directory / FILE
    fields = quant_config(Checkpoint.open(directory))
    if path.exists():
        raise RequestError(f"{path} exists: TensorRT-LLM reads it as it is, remove it to have it written anew")
    with staged_file(path) as part:
        part.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return path


def main(arguments: list[str]) -> int:
    """Run the command line. Returns: the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m sala_export.tensorrt_llm.quant_config CHECKPOINT\n")
        return 2
    try:
        sys.stdout.write(f"{write_quant_config(Path(arguments[0]))}\n")
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
