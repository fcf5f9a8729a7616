"""A checkpoint whose weights are nowhere: enough for graphs that take them as inputs, at any size."""

from __future__ import annotations

import math
from pathlib import Path

from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import weights
from sala_export.checkpoint.quantization import Quantization
from sala_export.checkpoint.quantized_weights import QuantizedWeight
from sala_export.checkpoint.reader import Checkpoint
from sala_export.checkpoint.tensor_location import TensorLocation
from sala_export.specs import DType, Precision

_CODES = {Precision.FP8: DType.FLOAT8_E4M3FN, Precision.INT8: DType.INT8}


def placeless_checkpoint(config: SalaConfig, precision: Precision) -> Checkpoint:
    """In bf16 or fp16, fp8 or int8."""
    quantization = Quantization.default(precision) if precision.is_quantized else None
    covered = [weight for weight in weights(config) if quantization and quantization.covers(weight.name)]
    names = {weight.name for weight in covered}
    return Checkpoint(
        directory=Path("nowhere"),
        config=config,
        dtype=DType.BFLOAT16,
        locations={
            weight.name: _nowhere(DType.BFLOAT16, weight.shape)
            for weight in weights(config)
            if weight.name not in names
        },
        quantization=quantization,
        quantized={weight.name: _quantized(weight.name, weight.shape, precision) for weight in covered},
    )


def _quantized(name: str, shape: tuple[int, ...], precision: Precision) -> QuantizedWeight:
    module, (rows, columns) = name.removesuffix(".weight"), shape
    scale = _nowhere(DType.FLOAT32, (1,))
    return QuantizedWeight(
        name=name,
        precision=precision,
        shape=(rows, columns),
        tensors={
            f"{module}.weight": _nowhere(_CODES[precision], shape),
            f"{module}.weight_scale": scale,
            f"{module}.input_scale": scale,
        },
        scale_shape=(1, 1),
        global_scale=1.0,
        input_scale=1.0,
    )


def _nowhere(dtype: DType, shape: tuple[int, ...]) -> TensorLocation:
    return TensorLocation(
        file=Path("nowhere"), offset=0, length=dtype.bytes * math.prod(shape), dtype=dtype, shape=shape
    )
