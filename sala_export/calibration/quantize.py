"""Turns a checkpoint into a quantised one, layer by layer.

The hidden rows of the calibration samples travel from layer to layer, in fp32 and unquantised. The weights of one layer
are in memory at a time. Each layer becomes a file of its own when it is done, and the rows that leave it are kept
beside it until the next is, so that an interrupted run goes on after its last layer, to the same bytes. A precision
that needs no samples rounds one weight after the other, and nothing runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..bundle.hashing import Hashing, tensor_spans
from ..checkpoint.folder import CONFIG_FILE, INDEX_FILE
from ..checkpoint.keymap import EMBEDDING, FINAL_NORM, LM_HEAD, Weight, layer_weights, weights
from ..checkpoint.quantization import QUANTIZATION_FIELD, SCHEMES, Quantization, require_quantizable
from ..checkpoint.reader import Checkpoint
from ..checkpoint.safetensors_header import TYPE_NAMES, StoredTensor, read_header
from ..checkpoint.safetensors_writer import NewTensor, write_safetensors
from ..errors import CheckpointError, DiskFullError, UnsupportedError
from ..files import OpenedFile, TextFile
from ..installation import VERSION
from ..model.layer_run import LayerRun, embed, layer_prefix, make_layer
from ..numerics.block_scales import NAN_SCALE, quantize_mxfp8
from ..numerics.number_formats import MX_BLOCK
from ..numerics.weights import row_blocks
from ..progress import ProgressCallback, silent
from ..specs import DType, format_bytes
from ..staging import MARKER, Staging, resumable_directory
from .layer import QuantizationRecipe, SiteInputs, quantize_layer
from .samples import SampleRequest
from .sites import layer_sites

_ROWS_FILE = "hidden-rows-{:05}.safetensors"
"""Hidden rows that enter a layer; leaves with the next."""
_ROWS = "rows"
_PHASE = "quantize"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeResult:
    """What a run took."""

    directory: Path
    seconds: float
    peak_host_bytes: int
    """Peak resident memory of this process, in bytes."""


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: QuantizationRecipe,
    samples: SampleRequest,
    output: Path,
    *,
    force: bool = False,
    on_progress: ProgressCallback = silent,
) -> QuantizeResult:
    """Write the directory `output`, a checkpoint in compressed-tensors' format, whole or not at all.

    The next run with equal arguments continues an interrupted one, and gives the same bytes on the same machine.

    Args: `samples` are read if the recipe needs any.
    Raises: RequestError, CheckpointError or UnsupportedError for bad input, or DiskFullError.
    """
    start = time.monotonic()
    _require_quantizable(checkpoint, recipe)
    texts = checkpoint.text_files()
    tokens = samples.read(checkpoint.config, texts) if recipe.needs_samples else []
    key = _resume_key(checkpoint, recipe, tokens, on_progress)
    with resumable_directory(output, marker=MARKER, force=force, key=key) as staging:
        run = (_CalibratedRun if recipe.needs_samples else _RoundingRun)(checkpoint, recipe, tokens, staging)
        run.check_disk()
        run.layers(on_progress)
        run.finish(texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return QuantizeResult(directory=output, seconds=time.monotonic() - start, peak_host_bytes=peak)


def quantization(recipe: QuantizationRecipe) -> Quantization:
    """What the config.json of the result says."""
    return Quantization.default(recipe.precision, include_gates=recipe.include_gates)


class _Run(ABC):
    """One checkpoint on its way. Shards: the embedding, each layer, and the final norm with lm_head."""

    def __init__(
        self, checkpoint: Checkpoint, recipe: QuantizationRecipe, tokens: list[Tensor], staging: Staging
    ) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._recipe = recipe
        self._tokens = tokens
        self._staging = staging
        self._shards = self._config.num_hidden_layers + 2

    @abstractmethod
    def layers(self, on_progress: ProgressCallback) -> None:
        """Write every shard but the last that is not there yet."""

    def finish(self, texts: Mapping[str, TextFile]) -> None:
        """The last shard, the index and everything that is not a weight."""
        names = [name for name in (FINAL_NORM, LM_HEAD) if name in self._checkpoint.locations]
        _write_whole(self._shard(self._shards - 1), {name: self._checkpoint.tensor(name) for name in names})
        directory = self._staging.path
        headers = {self._shard(number).name: _header(self._shard(number)) for number in range(self._shards)}
        total = sum(tensor.length for header in headers.values() for tensor in header.values())
        weight_map = {name: shard for shard, header in headers.items() for name in header}
        _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        assert self._checkpoint.folder is not None, "weights of bundles are not quantised"
        quantized = {QUANTIZATION_FIELD: quantization(self._recipe).to_dict()}
        _write_json(directory / CONFIG_FILE, {**self._checkpoint.folder.config_fields, **quantized})
        for name, file in texts.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(file.content)
        self._checkpoint.require_unchanged()

    def check_disk(self) -> None:
        """Raises: DiskFullError."""
        per_weight = SCHEMES[self._recipe.precision].bits_per_weight / 8
        linear = sum(w.elements for w in weights(self._config) if w.layer is not None and len(w.shape) == 2)
        rows = 2 * 4 * self._config.hidden_size * sum(len(ids) for ids in self._tokens)
        whole = self._checkpoint.weight_bytes() - linear * self._checkpoint.dtype.bytes
        needed = whole + int(linear * per_weight) + rows
        free = shutil.disk_usage(self._staging.path).free
        there = sum(file.stat().st_size for file in self._staging.path.iterdir())
        if needed > free + there:
            raise DiskFullError(
                f"the disk of {self._staging.path.parent} has {format_bytes(free)} free, the checkpoint takes about "
                f"{format_bytes(needed)}: free some space or choose another --output"
            )

    def _require_finite(self, name: str, *, finite: bool) -> None:
        """Raises: CheckpointError if a weight's values are not all `finite`."""
        if not finite:
            raise CheckpointError(f"{self._checkpoint.locations[name].file}: {name} holds values that are not finite")

    def _shard(self, number: int) -> Path:
        return self._staging.path / f"model-{number + 1:05}-of-{self._shards:05}.safetensors"


class _CalibratedRun(_Run):
    """Samples run through the layers, and the inputs of products decide."""

    def layers(self, on_progress: ProgressCallback) -> None:
        """Write every shard that is not there yet."""
        first, hidden = self._start()
        run = LayerRun(self._config)
        for layer in range(first, self._config.num_hidden_layers):
            self._layer(layer, run, hidden, on_progress)

    def _layer(self, layer: int, run: LayerRun, hidden: list[Tensor], on_progress: ProgressCallback) -> None:
        """Write the shard of a layer and replace the rows that enter it by those that leave. Nothing of it stays."""
        begun, prefix = time.monotonic(), layer_prefix(layer)
        count, per_layer = self._config.num_hidden_layers, len(hidden) + 1
        on_progress(_PHASE, layer * per_layer, count * per_layer)
        wanted = [weight.name for weight in layer_weights(self._config, layer)]
        loaded = {name.removeprefix(prefix): self._load(name) for name in wanted}
        module = make_layer(self._config, layer, loaded)
        sites = layer_sites(self._config, layer, include_gates=self._recipe.include_gates)
        inputs = SiteInputs(sites, sum(len(rows) for rows in hidden))
        with inputs.record(module):
            for index, rows in enumerate(hidden):
                hidden[index] = run.run(layer, module, rows)
                on_progress(_PHASE, layer * per_layer + index + 1, count * per_layer)
        by_module = {name.removesuffix(".weight"): tensor for name, tensor in loaded.items()}
        quantized, exponents = quantize_layer(self._config, layer, by_module, inputs, self._recipe)
        self._write_rows(layer + 1, hidden)
        _write_whole(self._shard(layer + 1), self._layer_tensors(layer, by_module, quantized))
        self._rows_file(layer).unlink()
        on_progress(_PHASE, (layer + 1) * per_layer, count * per_layer)
        logger.info(
            "layer %d of %d: %.1f s, exponents %s, peak memory %s",
            layer + 1,
            count,
            time.monotonic() - begun,
            exponents or "none",
            format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
        )

    def finish(self, texts: Mapping[str, TextFile]) -> None:
        super().finish(texts)
        self._rows_file(self._config.num_hidden_layers).unlink(missing_ok=True)

    def _start(self) -> tuple[int, list[Tensor]]:
        """The first layer to do and the rows that enter it."""
        if self._shard(self._shards - 1).is_file():
            return self._config.num_hidden_layers, []  # killed while it finished
        for layer in range(self._config.num_hidden_layers, -1, -1):
            if self._rows_file(layer).is_file() and self._shard(layer).is_file():
                logger.info("going on after %d of %d layers", layer, self._config.num_hidden_layers)
                return layer, self._read_rows(layer)
        embedding = self._checkpoint.tensor(EMBEDDING)
        _write_whole(self._shard(0), {EMBEDDING: embedding})
        hidden = [embed(self._config, embedding, ids) for ids in self._tokens]
        self._write_rows(0, hidden)
        self._staging.keep()
        return 0, hidden

    def _load(self, name: str) -> Tensor:
        """A weight in fp32, as memory of this process. Raises: CheckpointError if it holds infinities or NaN."""
        tensor = self._checkpoint.tensor(name).to(torch.float32, copy=True)
        self._require_finite(name, finite=_is_finite(tensor))
        return tensor

    def _layer_tensors(
        self, layer: int, kept: dict[str, Tensor], quantized: dict[str, dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of a layer's shard, by name."""
        prefix = layer_prefix(layer)
        found = {}
        for module, tensor in kept.items():
            if module not in quantized:
                name = f"{prefix}{module}.weight"
                found[name] = tensor.to(getattr(torch, self._checkpoint.locations[name].dtype))
        for module, tensors in quantized.items():
            found |= {f"{prefix}{module}.{role}": tensor for role, tensor in tensors.items()}
        return found

    def _rows_file(self, layer: int) -> Path:
        return self._staging.path / _ROWS_FILE.format(layer)

    def _write_rows(self, layer: int, hidden: list[Tensor]) -> None:
        rows = torch.cat(hidden)
        if not _is_finite(rows):
            raise CheckpointError(
                f"{self._checkpoint.directory}: activations of layer {layer - 1} are not finite in fp32: the weights "
                "are damaged, or of another model"
            )
        _write_whole(self._rows_file(layer), {_ROWS: rows})

    def _read_rows(self, layer: int) -> list[Tensor]:
        file = self._rows_file(layer)
        stored = _header(file)[_ROWS]
        whole = torch.from_file(str(file), shared=False, size=stored.offset + stored.length, dtype=torch.uint8)
        rows = whole[stored.offset :].view(torch.float32).view(stored.shape)
        return [part.clone() for part in torch.split(rows, [len(ids) for ids in self._tokens])]


class _RoundingRun(_Run):
    """Every weight is rounded by itself, to MXFP8, and one is in memory at a time."""

    def layers(self, on_progress: ProgressCallback) -> None:
        """Write every shard that is not there yet."""
        self._staging.keep()
        if not self._shard(0).is_file():
            _write_whole(self._shard(0), {EMBEDDING: self._checkpoint.tensor(EMBEDDING)})
        by_layer = [layer_weights(self._config, layer) for layer in range(self._config.num_hidden_layers)]
        lengths = {weight.name: self._checkpoint.locations[weight.name].length for each in by_layer for weight in each}
        done, chosen = 0, quantization(self._recipe)
        for layer, layers_own in enumerate(by_layer):
            tensors: dict[str, Tensor] = {}
            finished = self._shard(layer + 1).is_file()
            for weight in layers_own:
                if not finished:
                    tensors |= self._rounded(weight) if chosen.covers(weight.name) else self._kept(weight)
                done += lengths[weight.name]
                on_progress(_PHASE, done, sum(lengths.values()), "bytes")
            if not finished:
                _write_whole(self._shard(layer + 1), tensors)

    def _rounded(self, weight: Weight) -> dict[str, Tensor]:
        """The tensors that stand for a weight, by name. Only a part of it is in fp32 at a time."""
        stored, (outputs, inputs) = self._checkpoint.tensor(weight.name), weight.shape
        codes = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn)
        scales = torch.empty(outputs, inputs // MX_BLOCK, dtype=torch.uint8)
        blocks = (row_blocks(matrix, inputs) for matrix in (stored, codes, scales))
        for rows, some_codes, some_scales in zip(*blocks, strict=True):
            some_codes[:], some_scales[:] = quantize_mxfp8(rows)
        self._require_finite(weight.name, finite=not bool((scales == NAN_SCALE).any()))
        return {weight.name: codes, f"{weight.name}_scale": scales}

    def _kept(self, weight: Weight) -> dict[str, Tensor]:
        stored = self._checkpoint.tensor(weight.name)
        self._require_finite(weight.name, finite=_is_finite(stored))
        return {weight.name: stored}


def _require_quantizable(checkpoint: Checkpoint, recipe: QuantizationRecipe) -> None:
    """Raises: UnsupportedError if it is quantised already, or a projection cannot be cut into groups."""
    if checkpoint.precision is not None:
        raise UnsupportedError(
            f"{checkpoint.directory} is quantised to {checkpoint.precision} already: give the original checkpoint"
        )
    chosen = quantization(recipe)
    for weight in weights(checkpoint.config):
        if chosen.covers(weight.name):
            require_quantizable(weight.name, weight.shape[1], chosen.scheme)


def _resume_key(
    checkpoint: Checkpoint, recipe: QuantizationRecipe, tokens: list[Tensor], on_progress: ProgressCallback
) -> str:
    """Stands for everything that decides the bytes."""
    # Sizes and times do not tell two models apart: copying tools keep both.
    with Hashing(tensor_spans(checkpoint)) as hashing:
        digests = hashing.result(on_progress)
    decisive = {
        "program": VERSION,
        "torch": (torch.__version__, torch.get_num_threads()),
        "recipe": asdict(recipe),
        "config": asdict(checkpoint.config),
        "weights": digests,
        "tokens": [ids.tolist() for ids in tokens],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, in one pass: a NaN is its own extreme."""
    least, largest = torch.aminmax(tensor)
    return bool(torch.isfinite(least) & torch.isfinite(largest))


def _header(path: Path) -> dict[str, StoredTensor]:
    """The header of a file that this run or the interrupted one before it wrote."""
    return read_header(OpenedFile.open(path, error=CheckpointError))


def _write_whole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file that is there, on disk, or not at all."""
    unfinished = path.with_name(f"{path.name}.new")
    write_safetensors(unfinished, [_new_tensor(name, tensor) for name, tensor in tensors.items()])
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


def _new_tensor(name: str, tensor: Tensor) -> NewTensor:
    flat = tensor.contiguous().view(-1)
    return NewTensor(
        name=name,
        dtype=TYPE_NAMES[DType(str(tensor.dtype).removeprefix("torch."))],
        shape=tuple(tensor.shape),
        blocks=lambda: [flat.view(torch.uint8).numpy()],
    )


def _write_json(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
