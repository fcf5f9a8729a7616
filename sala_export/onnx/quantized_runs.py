"""Quantised weights of one product as one tensor: used where they lie if that is possible, else written once more.

TensorRT takes a quantised constant only as the direct input of its DequantizeLinear: weights of a pack cannot be
concatenated in the graph as others are. Tensors that lie one behind the other in a file are one tensor already. Those
that do not, and int4, whose nibbles compressed-tensors stores with an offset of 8 where ONNX has two's complement, are
written to `PACKED_FILE`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.keymap import packs, weights
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.reader import Checkpoint
from ..checkpoint.safetensors_header import read_header
from ..checkpoint.safetensors_writer import NewTensor, write_safetensors
from ..checkpoint.tensor_location import TensorLocation
from ..errors import DiskFullError
from ..specs import DType, Precision, format_bytes
from .projections import packed_name

PACKED_FILE = "packed.safetensors"

_BLOCK_BYTES = 4 << 20
_FLIP_TOP_BITS = np.uint8(0x88)
"""(x + 8) as an unsigned nibble becomes x in two's complement when its top bit is flipped."""
_WORDS = {
    DType.FLOAT8_E4M3FN: "F8_E4M3",
    DType.INT8: "I8",
    DType.UINT8: "U8",
    DType.INT32: "I32",
    DType.BFLOAT16: "BF16",
    DType.FLOAT32: "F32",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Quantised weights whose rows one product takes, one after the other."""

    weights: tuple[QuantizedWeight, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(weight.name for weight in self.weights)

    @property
    def name(self) -> str:
        """Of a weight, or of several together, as `packed_name` makes it."""
        return packed_name(self.names)

    @property
    def precision(self) -> Precision:
        return self.weights[0].precision

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]"""
        return sum(weight.shape[0] for weight in self.weights), self.weights[0].shape[1]

    @property
    def has_groups(self) -> bool:
        """Whether scales change along the input."""
        return self.precision in (Precision.INT4, Precision.NVFP4)

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Of scales in groups: [out, groups along the input]."""
        return self.shape[0], self.weights[0].scale_shape[1]

    def flat_scales(self) -> NDArray[np.float32]:
        """Scales of weights without groups: fp32 [], if there is one, else [out]."""
        scales = [weight.scales()[:, 0] for weight in self.weights]
        if len({scale.tobytes() for scale in scales}) == 1 and scales[0].size == 1:
            return scales[0].reshape(())
        rows = [np.broadcast_to(scale, weight.shape[:1]) for scale, weight in zip(scales, self.weights, strict=True)]
        return np.concatenate(rows)

    def rewritten(self) -> dict[str, list[TensorLocation]]:
        """The tensors that cannot be used where they lie, by their name in `PACKED_FILE`."""
        found = {}
        data = [weight.data for weight in self.weights]
        if self.precision is Precision.INT4 or not _adjacent(data):
            found[self.data_name] = data
        scales = [weight.scale for weight in self.weights]
        if self.has_groups and not _adjacent(scales):
            found[self.scale_name] = scales
        return found

    @property
    def data_name(self) -> str:
        return f"{self.name}_packed"

    @property
    def scale_name(self) -> str:
        return f"{self.name}_scale"


Piece = Run | tuple[str, ...]
"""Neighbours of a pack: quantised weights, or names of others."""


def cut_runs(checkpoint: Checkpoint, names: Sequence[str]) -> list[Piece]:
    """The weights of a projection, in their order, cut where quantised ones begin or end."""
    pieces: list[Piece] = []
    for is_quantized, group in groupby(names, key=lambda name: name in checkpoint.quantized):
        run = tuple(group)
        pieces.append(Run(weights=tuple(checkpoint.quantized[name] for name in run)) if is_quantized else run)
    return pieces


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Bytes of a file beside the graph."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedRun:
    """Where the graph finds a run."""

    run: Run
    data: Span
    scale: Span | None
    """None where scales are few and part of the graph."""


def checkpoint_runs(checkpoint: Checkpoint) -> list[Run]:
    """Every run of a checkpoint's graph."""
    all_weights = weights(checkpoint.config)
    packed = [tuple(weight.name for weight in pack) for pack in packs(all_weights)]
    alone = {weight.name for weight in all_weights}.difference(*packed)
    together = [*packed, *((name,) for name in sorted(alone))]
    return [piece for names in together for piece in cut_runs(checkpoint, names) if isinstance(piece, Run)]


def rewritten_bytes(runs: Iterable[Run]) -> int:
    """Size of `PACKED_FILE`, but for its header."""
    return sum(part.length for run in runs for parts in run.rewritten().values() for part in parts)


def place_runs(runs: Sequence[Run], directory: Path, placed: Mapping[Path, str]) -> list[PlacedRun]:
    """Write what must be written to `directory`, one block in memory at a time, and say where each run lies.

    Args: `placed`, the checkpoint's files by path, as `place_weights` returns them.
    Raises: DiskFullError before anything is written.
    """
    rewritten = {name: (run, parts) for run in runs for name, parts in run.rewritten().items()}
    needed, free = rewritten_bytes(runs), shutil.disk_usage(directory).free
    if needed > free:
        raise DiskFullError(
            f"not enough disk to pack the quantised weights: {format_bytes(needed)} needed, {format_bytes(free)} free"
        )
    spans: dict[str, Span] = {}
    if rewritten:
        file = directory / PACKED_FILE
        write_safetensors(file, [_packed(name, run, parts) for name, (run, parts) in rewritten.items()])
        for name, stored in read_header(file).items():
            spans[name] = Span(file=PACKED_FILE, offset=stored.offset, length=stored.length)

    def span(name: str, parts: Sequence[TensorLocation]) -> Span:
        total = sum(part.length for part in parts)
        return spans.get(name) or Span(file=placed[parts[0].file], offset=parts[0].offset, length=total)

    return [
        PlacedRun(
            run=run,
            data=span(run.data_name, [weight.data for weight in run.weights]),
            scale=span(run.scale_name, [weight.scale for weight in run.weights]) if run.has_groups else None,
        )
        for run in runs
    ]


def _adjacent(parts: Sequence[TensorLocation]) -> bool:
    """Whether the parts are one stretch of one file."""
    return all(a.file == b.file and a.offset + a.length == b.offset for a, b in pairwise(parts))


def _packed(name: str, run: Run, parts: Sequence[TensorLocation]) -> NewTensor:
    columns = parts[0].shape[1]
    is_int4_data = run.precision is Precision.INT4 and name == run.data_name

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for part in parts:
            raw = part.raw()
            for begin in range(0, part.length, _BLOCK_BYTES):
                block = raw[begin : begin + _BLOCK_BYTES]
                yield block ^ _FLIP_TOP_BITS if is_int4_data else block

    # Nibbles in two's complement are no longer the int32 words of compressed-tensors.
    dtype, width = ("U8", 4 * columns) if is_int4_data else (_WORDS[parts[0].dtype], columns)
    return NewTensor(name=name, dtype=dtype, shape=(run.shape[0], width), blocks=blocks)
