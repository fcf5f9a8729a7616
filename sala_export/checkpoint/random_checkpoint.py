"""Checkpoints with random weights, in the layout and of the sizes of the published one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..files import absolute
from ..progress import ProgressCallback, silent
from ..specs import QUANTIZED_PRECISIONS, TOKENIZER_FILE, Precision, format_bytes
from ..staging import MARKER, require_free_path, staged_directory
from .config import ARCHITECTURE, SalaConfig
from .folder import CONFIG_FILE, INDEX_FILE
from .keymap import Weight, packs, weights
from .presets import preset
from .quantization import QUANTIZATION_FIELD, Quantization
from .random_quantized import RandomQuantizedWeights
from .random_weights import RandomWeights
from .safetensors_writer import NewTensor, write_safetensors
from .synthetic_tokenizer import build_tokenizer, tokenizer_config

WRITTEN_PRECISIONS = (Precision.BF16, *QUANTIZED_PRECISIONS)
_ACCESSORY_BYTES = 16 * 2**20
"""Room for everything but the weights; the largest tokenizer.json takes 4 MiB."""


def write_random_checkpoint(
    path: Path,
    preset_name: str,
    *,
    layers: int | None = None,
    seed: int = 0,
    precision: Precision = Precision.BF16,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> None:
    """Write a bf16 checkpoint in Hugging Face layout: config, sharded weights with index, tokenizer, chat template.

    Logits over random tokens have a standard deviation of about 3, a few channels of the residual stream carry
    outliers, and a few inputs of projections stand out by an order of magnitude (`random_weights`). A seed gives the
    same bytes everywhere, and the same tensors whatever `layers` is. With `layers` the first that many mixers of the
    preset are taken, and the residual scale is that of the model written: scale_depth / sqrt(layers). A quantised
    `precision` draws quantised weights of the same distributions, without inputs that stand out.

    Appears whole or not at all; needs a few tens of megabytes of memory.
    Raises: RequestError if the preset is unknown or shorter, `precision` is not written, `path` is taken (unless
    `force`) or the disk too small.
    """
    if precision is not Precision.BF16 and not precision.is_quantized:
        raise RequestError(f"--precision {precision}: expected one of {', '.join(WRITTEN_PRECISIONS)}")
    chosen = preset(preset_name, layers)
    require_free_path(path, marker=MARKER, force=force)
    quantization = Quantization.default(precision) if precision.is_quantized else None
    # Drawn quantised weights have no small columns to read salient channels with.
    random = RandomWeights(chosen.config, seed, salient=quantization is None)
    shards = _cut(_tensors(chosen.config, random, quantization), chosen.max_shard_bytes)
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    free = shutil.disk_usage(absolute(path).parent).free
    if total + _ACCESSORY_BYTES > free:
        raise RequestError(
            f"{path}: not enough disk for the weights: {format_bytes(total)} needed, {format_bytes(free)} free; "
            "choose another disk or fewer --layers"
        )
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("random weights", done, total, "bytes")

    with staged_directory(path, marker=MARKER, force=force) as directory:
        _write_accessories(directory, chosen.config, quantization)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_safetensors(directory / name, shard, advance)
            weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
        _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _tensors(config: SalaConfig, random: RandomWeights, quantization: Quantization | None) -> list[NewTensor]:
    """Everything to write, in the order of computation."""
    all_weights = weights(config)
    if quantization is None:
        return [_plain(weight, random) for weight in all_weights]
    quantized = RandomQuantizedWeights(random, quantization)
    pack_of = {weight.name: pack for pack in packs(all_weights) for weight in pack}
    found, done = list[NewTensor](), set[str]()
    for weight in all_weights:
        if not quantization.covers(weight.name):
            found.append(_plain(weight, random))
        elif weight.name not in done:
            pack = tuple(w for w in pack_of.get(weight.name, (weight,)) if quantization.covers(w.name))
            found += quantized.pack_tensors(pack)
            done |= {w.name for w in pack}
    return found


def _plain(weight: Weight, random: RandomWeights) -> NewTensor:
    return NewTensor(name=weight.name, dtype="BF16", shape=weight.shape, blocks=lambda: random.blocks(weight))


def _cut(tensors: Iterable[NewTensor], max_shard_bytes: int) -> list[list[NewTensor]]:
    """Consecutive tensors into shards as full as the limit allows; what is larger gets one of its own."""
    shards: list[list[NewTensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def _write_accessories(directory: Path, config: SalaConfig, quantization: Quantization | None) -> None:
    served = config.to_dict()
    if quantization is not None:
        served[QUANTIZATION_FIELD] = quantization.to_dict()
    _write_json(
        directory / CONFIG_FILE,
        {
            **served,
            "architectures": [ARCHITECTURE],
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
    tokenizer = build_tokenizer(config.vocab_size).to_str(pretty=True)  # save() tells of a full disk as Exception
    (directory / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
