"""Checkpoints with random weights, in the layout and of the sizes of the published one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..progress import Progress, silent
from ..specs import format_bytes
from ..staging import MARKER, require_free_path, staged_directory
from .config import SalaConfig
from .keymap import Weight, weights
from .presets import preset
from .random_weights import RandomWeights
from .reader import CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE
from .safetensors_header import LENGTH_BYTES
from .synthetic_tokenizer import build_tokenizer, tokenizer_config

_ELEMENT_BYTES = 2
_ALIGNMENT_BYTES = 8
_ACCESSORY_BYTES = 16 * 2**20
"""Room for everything but the weights; the largest tokenizer.json takes 4 MiB."""


def write_random_checkpoint(
    path: Path,
    preset_name: str,
    *,
    layers: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Write a bf16 checkpoint in Hugging Face layout: config, sharded weights with index, tokenizer, chat template.

    Logits over random tokens have a standard deviation of about 3, and a few channels of the residual stream carry
    outliers (`random_weights`). A seed gives the same bytes everywhere, and the same tensors whatever `layers` is.
    With `layers` the first that many mixers of the preset are taken, and the residual scale is that of the model
    written: scale_depth / sqrt(layers).

    Appears whole or not at all; needs a few tens of megabytes of memory.
    Raises: RequestError if the preset is unknown or shorter, `path` is taken (unless `force`) or the disk too small.
    """
    chosen = preset(preset_name, layers)
    require_free_path(path, marker=MARKER, force=force)
    shards = _cut(weights(chosen.config), chosen.max_shard_bytes)
    total = sum(_size(weight) for shard in shards for weight in shard)
    free = shutil.disk_usage(path.absolute().parent).free
    if total + _ACCESSORY_BYTES > free:
        raise RequestError(
            f"{path}: not enough disk for the weights: {format_bytes(total)} needed, {format_bytes(free)} free; "
            "choose another disk or fewer --layers"
        )
    random = RandomWeights(chosen.config, seed)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("random weights", done, total, "bytes")

    with staged_directory(path, marker=MARKER, force=force) as directory:
        _write_accessories(directory, chosen.config)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_shard(directory / name, shard, random, advance)
            weight_map |= dict.fromkeys((weight.name for weight in shard), name)
        _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _cut(all_weights: Iterable[Weight], max_shard_bytes: int) -> list[list[Weight]]:
    """Consecutive weights into shards as full as the limit allows; a larger weight gets one of its own."""
    shards: list[list[Weight]] = []
    room = 0
    for weight in all_weights:
        if not shards or _size(weight) > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(weight)
        room -= _size(weight)
    return shards


def _size(weight: Weight) -> int:
    return weight.elements * _ELEMENT_BYTES


def _write_shard(path: Path, shard: list[Weight], random: RandomWeights, advance: Callable[[int], None]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in shard:
        begin, end = end, end + _size(weight)
        header[weight.name] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format pads its header with spaces so that data start at a multiple of 8.
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for weight in shard:
            for block in random.blocks(weight):
                file.write(block.data)
                advance(block.nbytes)


def _write_accessories(directory: Path, config: SalaConfig) -> None:
    served = config.to_dict()
    _write_json(
        directory / CONFIG_FILE,
        {
            **served,
            "architectures": ["MiniCPMSALAForCausalLM"],
            "dtype": "bfloat16",
            "initializer_range": 0.1,
            "mup_denominator": 32,
            "rope_scaling": None,
            "sparse_config": {**served["sparse_config"], "use_nope": False},
            "use_cache": True,
        },
    )
    tokens = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id),
        "pad_token_id": config.pad_token_id,
    }
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8}
    _write_json(directory / "generation_config.json", {**tokens, **sampling})
    _write_json(directory / "tokenizer_config.json", tokenizer_config(config))
    build_tokenizer(config.vocab_size).save(str(directory / TOKENIZER_FILE))


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
