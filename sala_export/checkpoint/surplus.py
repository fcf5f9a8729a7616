"""Judges the tensors of a checkpoint that no weight of the model asks for.

What would change answers is refused: biases, factors of adapters, layers and scales that config.json does not speak of.
Buffers, which are computed, are left out. So are parts beside the language model, which are named in a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import CheckpointError
from ..files import Directory, OpenedFile, read_json
from .config import SalaConfig
from .folder import INDEX_FILE, WEIGHTS_FILE
from .keymap import EMBEDDING, LM_HEAD, weights
from .safetensors_header import StoredTensor, read_header

logger = logging.getLogger(__name__)

_NAMED = 3
_MOST_BIAS_BYTES = 1 << 20

_BUFFER = re.compile(
    r"(^|\.)((original_|long_|short_)?inv_freq|(cos|sin|cos_sin)_cached?|position_ids|masked_bias|(causal_|attention_)?mask"
    r"|slopes?|slope_rates?|decays?|num_batches_tracked|_extra_state)$"
)
"""Computed from the configuration, or of training: tables of RoPE, masks, slopes of the decay, counters."""

_OF_MODEL = re.compile(
    r"((module|_orig_mod|base_model|language_model|llm|transformer)\.)*(model|lm_head|layers|embed_tokens|norm)\."
)
"""Names of the language model's tensors, also below what wraps a model, or without the `model` that holds them."""

_BESIDE = re.compile(r"model\.(vision|visual|audio|mtp|eagle|medusa)")
"""Parts that some tools put below `model`, and that the answers to text do not depend on."""

_ADAPTER = re.compile(r"(^base_model|\.base_layer|\.lora_[A-Za-z_]+|\.(hada|lokr)_[a-z0-9]+)(\.|$)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_SCALE = re.compile(
    r"\.(weight_(scale(_inv|_2)?|packed|shape|zero_point|global_scale|g_idx)|(input|output)_(global_)?(scale|zero_point)"
    r"|pre_quant_scale|[kqv]_scale|qweight|qzeros|scales|g_idx|SCB|absmax|nested_absmax|quant_map|nested_quant_map"
    r"|quant_state\..*)$"
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor that the files or their index name."""

    shard: str
    file: OpenedFile | None
    """None if the shard is not there."""
    entry: StoredTensor | None

    def is_zero(self) -> bool:
        """True if all of it is there, and zero."""
        if self.file is None or self.entry is None or self.entry.length > _MOST_BIAS_BYTES:
            return False
        return not any(any(block) for block in self.file.blocks(self.entry.offset, self.entry.length))

    def equals(self, other: _Stored) -> bool:
        """True if both are there, with the same type, shape and bytes."""
        if self.file is None or other.file is None or self.entry is None or other.entry is None:
            return False
        mine, its = self.entry, other.entry
        if (mine.dtype, mine.shape, mine.length) != (its.dtype, its.shape, its.length):
            return False
        blocks = zip(self.file.blocks(mine.offset, mine.length), other.file.blocks(its.offset, its.length), strict=True)
        return all(one == another for one, another in blocks)


def require_no_surplus(directory: Directory, config: SalaConfig, owned: Collection[str]) -> None:
    """Refuse tensors that the model has no place for and that would change its answers; warn of other parts.

    Args: `config` is that of the whole model, `owned` the names of all tensors that stand for its weights.
    Raises: CheckpointError, one line that names a file and the first few tensors; also if the head is not what
        `tie_word_embeddings` says.
    """
    stored = _stored(directory)
    _check_head(directory, config, stored)
    surplus = [name for name in sorted(stored.keys() - owned) if not _BUFFER.search(name)]
    if config.tie_word_embeddings:
        surplus = [name for name in surplus if name != LM_HEAD]
    parts = [name for name in surplus if not _OF_MODEL.match(name) or _BESIDE.match(name)]
    _refuse(directory, config, stored, [name for name in surplus if name not in set(parts)])
    if parts:
        logger.warning("%s holds what is no part of this model, which is left out: %s", directory, _listed(parts))


def _stored(directory: Directory) -> dict[str, _Stored]:
    """Every tensor that the single file, or the index or a shard of it names. Empty if there is neither."""
    if directory.has(WEIGHTS_FILE):
        shards, found = {WEIGHTS_FILE}, {}
    else:
        index = read_json(directory.open(INDEX_FILE), error=CheckpointError) if directory.has(INDEX_FILE) else None
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        # Whoever reads the weights says what is wrong with an index.
        listed = weight_map.items() if isinstance(weight_map, dict) else ()
        found = {name: _Stored(shard, None, None) for name, shard in listed if isinstance(shard, str)}
        names = {stored.shard for stored in found.values() if stored.shard.endswith(".safetensors")}
        # A path with folders could point outside the checkpoint.
        shards = {name for name in names if "/" not in name and directory.has(name)}
    for shard in sorted(shards):
        file = directory.open(shard)
        found |= {name: _Stored(shard, file, entry) for name, entry in read_header(file).items()}
    return found


def _check_head(directory: Directory, config: SalaConfig, stored: Mapping[str, _Stored]) -> None:
    """Refuse a head that is missing, and one beside a tied embedding that is not equal to it."""
    if EMBEDDING not in stored:
        return
    if config.tie_word_embeddings:
        if LM_HEAD in stored and not stored[LM_HEAD].equals(stored[EMBEDDING]):
            raise CheckpointError(
                f"{directory}: config.json says tie_word_embeddings, but {stored[LM_HEAD].shard} holds a {LM_HEAD} "
                f'that is not {EMBEDDING}: set "tie_word_embeddings": false to use that head, or remove it'
            )
    elif not any(name.startswith("lm_head.") for name in stored):
        raise CheckpointError(
            f"{directory}: {stored[EMBEDDING].shard} and what else there is hold no {LM_HEAD}: if the embedding is the "
            'head too, set "tie_word_embeddings": true in config.json, else the checkpoint is incomplete'
        )


def _refuse(directory: Directory, config: SalaConfig, stored: Mapping[str, _Stored], names: Sequence[str]) -> None:
    kinds: dict[str, list[str]] = {}
    of_model = {weight.name for weight in weights(config)} if names else set()
    for name in names:
        # A bias of nothing changes nothing, and neither does a zero point.
        if not (name.endswith((".bias", "_zero_point")) and stored[name].is_zero()):
            kinds.setdefault(_reason(name, config, of_model), []).append(name)
    for reason, those in kinds.items():
        raise CheckpointError(f"{directory}: {stored[those[0]].shard} holds {_listed(those)}: {reason}")


def _reason(name: str, config: SalaConfig, of_model: Collection[str]) -> str:
    """Why a tensor is refused, and what to do. Args: of_model: names that the weights have unquantised."""
    layer = _LAYER.match(name)
    if _ADAPTER.search(name):
        return "an adapter that is not merged; merge it (merge_and_unload of peft) and take what that saves"
    if layer and int(layer[1]) >= config.num_hidden_layers:
        return (
            f"config.json has {config.num_hidden_layers} layers (num_hidden_layers), numbered from 0; take the "
            "config.json of these weights"
        )
    if name in of_model:
        return (
            "by quantization_config in config.json these weights are quantised, but they are stored as they are; name "
            "them among what it leaves alone (ignore), or take the config.json of these weights"
        )
    if _SCALE.search(name):
        return (
            "a sign of quantised weights, but quantization_config in config.json does not speak of it, or what belongs "
            "to it is missing; take the config.json of these weights, and all their files"
        )
    if name.endswith(".bias"):
        return "this model has no biases, and would answer wrongly without them; take a checkpoint without biases"
    if not name.startswith(("model.", "lm_head.")):
        return (
            "the tensors of this model begin with model. or lm_head.; rename these, or remove them if they are of no "
            "use"
        )
    return (
        "config.json calls for no such tensor, and answers without it would be wrong; take the config.json of these "
        "weights, or remove it if it is of no use"
    )


def _listed(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
