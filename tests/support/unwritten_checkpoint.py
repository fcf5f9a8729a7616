"""A checkpoint of any size whose weights were never written: enough for graphs that take them as inputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import Weight, weights
from sala_export.checkpoint.quantization import Quantization
from sala_export.checkpoint.quantized_weights import QuantizedWeight
from sala_export.checkpoint.reader import Checkpoint
from sala_export.checkpoint.tensor_location import TensorLocation
from sala_export.errors import CheckpointError
from sala_export.files import OpenedFile
from sala_export.specs import DType, Precision

_CODES = {
    Precision.FP8: (DType.FLOAT8_E4M3FN, "weight", 1),
    Precision.MXFP8: (DType.FLOAT8_E4M3FN, "weight", 1),
    Precision.INT8: (DType.INT8, "weight", 1),
    Precision.INT4: (DType.INT32, "weight_packed", 8),
    Precision.NVFP4: (DType.UINT8, "weight_packed", 2),
}
"""Type and name of the tensor of codes, and how many of them share a number."""
_SCALES = {Precision.MXFP8: DType.UINT8, Precision.INT4: DType.BFLOAT16, Precision.NVFP4: DType.FLOAT8_E4M3FN}


def unwritten_checkpoint(
    config: SalaConfig, precision: Precision, file: Path, quantization: Quantization | None = None
) -> Checkpoint:
    """All weights are in `file`, quantised ones first, whether it exists or not. By default all that may be are."""
    if precision.is_quantized and quantization is None:
        quantization = Quantization.default(precision)
    places = _Places(file)
    covered = [weight for weight in weights(config) if quantization and quantization.covers(weight.name)]
    quantized = {weight.name: places.quantized(weight, quantization) for weight in covered if quantization}
    plain = [weight for weight in weights(config) if weight.name not in quantized]
    return Checkpoint(
        directory=file.parent,
        config=config,
        dtype=DType.BFLOAT16,
        locations={weight.name: places.tensor(DType.BFLOAT16, weight.shape) for weight in plain},
        quantization=quantization,
        quantized=quantized,
    )


def write_quantized_weights(checkpoint: Checkpoint) -> None:
    """Fill the file with random bytes up to the end of the quantised weights."""
    tensors = [tensor for weight in checkpoint.quantized.values() for tensor in weight.tensors.values()]
    size = max(tensor.offset + tensor.length for tensor in tensors)
    tensors[0].file.path.write_bytes(np.random.default_rng(0).bytes(size))


class _Places:
    def __init__(self, file: Path) -> None:
        file.touch()
        self.file, self.end = OpenedFile.open(file, error=CheckpointError), 0

    def tensor(self, dtype: DType, shape: tuple[int, ...]) -> TensorLocation:
        offset, length = self.end, dtype.bytes * math.prod(shape)
        self.end += length
        return TensorLocation(file=self.file, offset=offset, length=length, dtype=dtype, shape=shape)

    def quantized(self, weight: Weight, quantization: Quantization) -> QuantizedWeight:
        precision, group = quantization.precision, quantization.scheme.group
        module, (rows, columns) = weight.name.removesuffix("weight"), weight.shape
        dtype, name, together = _CODES[precision]
        scale_shape = (rows, columns // group) if group else (1, 1)
        tensors = {
            f"{module}{name}": self.tensor(dtype, (rows, columns // together)),
            f"{module}weight_scale": self.tensor(_SCALES.get(precision, DType.FLOAT32), scale_shape),
        }
        return QuantizedWeight(
            name=weight.name,
            precision=precision,
            shape=(rows, columns),
            tensors=tensors,
            scale_shape=scale_shape,
            global_scale=1.0,
            input_scale=None if precision in (Precision.INT4, Precision.MXFP8) else 1.0,
            data_name=f"{module}{name}",
            scale_name=f"{module}weight_scale",
            input_scale_name=f"{module}input_scale" if precision in (Precision.FP8, Precision.INT8) else None,
        )
