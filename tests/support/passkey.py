"""A SALA checkpoint that recalls passkeys, with weights constructed by hand, and prompts that ask it to.

Random weights hide errors of block selection, because their attention is flat. Here every weight has a purpose:

    layer 0, lightning   copies to each token the identity of the token before it
    layer 1, sparse      asks "after which token came the one that I am?" and answers with the token found there

so that a key token, anywhere, is answered with the value token that followed its first mention. The sparse layer can
only find it in blocks that it selects. Filler has no key component: the mean over 32 keys leaves 1/32 of a needle's
key, and exactly nothing of all others.

Channels of the residual stream, all of size 1 where present: a constant, the token's identity (one channel for each
key and each value, one for all filler), texture that nothing reads, and the channels that the two layers write to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import EMBEDDING, LM_HEAD, weights

PAIRS = 16
"""Key tokens, and as many value tokens."""
UNKNOWN = 0
"""The token that answers a key that no value was found for."""
_EOS = 1
_FIRST_KEY = 2
_FIRST_VALUE = _FIRST_KEY + PAIRS
_FIRST_FILLER = _FIRST_VALUE + PAIRS
_VOCAB_SIZE = 128

_CONSTANT = 0
_FILLER = 1
_KEY = 2
_VALUE = _KEY + PAIRS
_AFTER_KEY = _VALUE + PAIRS
_AFTER_OTHER = _AFTER_KEY + PAIRS
_ANSWER = _AFTER_OTHER + 1
_TEXTURE = _ANSWER + PAIRS
_HIDDEN_SIZE = 128

_GATE = 0.5
"""sigmoid(0): all gates have zero weights."""
_MATCH_LOGIT = 64.0
"""s q.k of a key and the token after it; its 32nd part separates the scores of blocks."""
_ANSWER_SIZE = 4.0
"""Of the answer's channel, if all attention is on the needle."""

DEPTHS = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Where prompts have their needles, as fractions of their length."""


def passkey_config(*, num_attention_heads: int = 32, topk: int = 8, dense_len: int = 1024) -> SalaConfig:
    """Configuration of the checkpoint. A `topk` of 2 leaves only the forced blocks, so that nothing is selected."""
    return SalaConfig.from_dict(
        {
            "model_type": "minicpm_sala",
            "vocab_size": _VOCAB_SIZE,
            "hidden_size": _HIDDEN_SIZE,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "mixer_types": ["lightning-attn", "minicpm4"],
            "sparse_config": {"topk": topk, "window_size": 256, "dense_len": dense_len},
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 64,
            "max_position_embeddings": 2**20,
            "eos_token_id": _EOS,
        }
    )


def write_passkey_checkpoint(directory: Path, config: SalaConfig, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint in Hugging Face layout for a `passkey_config`; returns `directory`."""
    tensors = {weight.name: torch.zeros(weight.shape) for weight in weights(config)}
    for tensor in tensors.values():
        if tensor.ndim == 1:
            tensor.fill_(1.0)  # norms
    tensors[EMBEDDING][:] = _embedding() / config.scale_emb
    mixer = "model.layers.{}.self_attn.{}.weight"
    _fill_lightning(config, {role: tensors[mixer.format(0, role)] for role in _LIGHTNING_ROLES})
    _fill_sparse(config, {role: tensors[mixer.format(1, role)] for role in _SPARSE_ROLES})
    for pair in range(PAIRS):
        tensors[LM_HEAD][_FIRST_VALUE + pair, _ANSWER + pair] = 8.0
    # A value wins only with more than half of the attention.
    tensors[LM_HEAD][UNKNOWN, _CONSTANT] = 8.0 * _ANSWER_SIZE / 2
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


_LIGHTNING_ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
_SPARSE_ROLES = ("q_proj", "k_proj", "v_proj", "o_proj")


def _embedding() -> Tensor:
    """[V, H]; every row has the same norm, so that RMSNorm scales all tokens alike."""
    rows = torch.zeros(_VOCAB_SIZE, _HIDDEN_SIZE)
    rows[:, _CONSTANT] = 1.0
    rows[:, _FILLER] = 1.0
    for first, channel in ((_FIRST_KEY, _KEY), (_FIRST_VALUE, _VALUE)):
        tokens = torch.arange(PAIRS)
        rows[first + tokens, _FILLER] = 0.0
        rows[first + tokens, channel + tokens] = 1.0
    texture = torch.randn(_VOCAB_SIZE, _HIDDEN_SIZE - _TEXTURE, generator=torch.Generator().manual_seed(0))
    rows[:, _TEXTURE:] = texture / texture.norm(dim=1, keepdim=True)
    return rows


def _fill_lightning(config: SalaConfig, weight: dict[str, Tensor]) -> None:
    """Head 0, whose decay is the strongest, looks at the token before; the others stay zero."""
    dim = config.head_dim
    # Queries and keys are constant and only RoPE tells tokens apart; the norms after q_proj and k_proj give the shape.
    weight["q_proj"][:dim, _CONSTANT] = 1.0
    weight["k_proj"][:dim, _CONSTANT] = 1.0
    weight["q_norm"][:] = _previous_token_query(config)
    weight["k_norm"][dim // 2 :] = 0.0
    for pair in range(PAIRS):
        weight["v_proj"][pair, _KEY + pair] = 1.0
        weight["v_proj"][PAIRS, _VALUE + pair] = 1.0
    weight["v_proj"][PAIRS, _FILLER] = 1.0
    # One channel of the output is not zero, and the norm over all heads gives it the square root of their width.
    normed = math.sqrt(config.num_attention_heads * dim)
    size = 1.0 / (_GATE * normed * config.residual_scale)
    for pair in range(PAIRS):
        weight["o_proj"][_AFTER_KEY + pair, pair] = size
    weight["o_proj"][_AFTER_OTHER, PAIRS] = size


def _previous_token_query(config: SalaConfig) -> Tensor:
    """The query whose product with the key (1, .., 1, 0, .., 0), both rotated, is 1 one token later and else small.

    At a distance of d tokens the product is sum_f q_f cos(d w_f) - q_{f+D/2} sin(d w_f), and the state multiplies it
    with exp(-slope d). A little ridge keeps q small, because the rounding of RoPE angles grows with the position.
    """
    half = config.head_dim // 2
    slope = 2.0 ** (-8.0 / config.num_attention_heads)
    distance = np.arange(64.0)[:, None]
    angle = distance * config.rope_theta ** (-np.arange(half) / half)
    rows = np.concatenate((np.cos(angle), -np.sin(angle)), axis=1) * np.exp(-slope * distance)
    wanted = (distance[:, 0] == 1).astype(np.float64)
    return torch.from_numpy(np.linalg.solve(rows.T @ rows + 1e-3 * np.eye(2 * half), rows.T @ wanted))


def _fill_sparse(config: SalaConfig, weight: dict[str, Tensor]) -> None:
    """Even keys are looked up by the first head of group 0, odd ones by the first of group 1."""
    dim = config.head_dim
    # The layer's input has four channels of size 1.
    normed = math.sqrt(config.hidden_size / 4)
    size = math.sqrt(_MATCH_LOGIT / config.attention_scale) / normed
    answer = _ANSWER_SIZE / (_GATE * config.residual_scale * normed)
    for pair in range(PAIRS):
        group = pair % config.num_key_value_heads
        head = group * (config.num_attention_heads // config.num_key_value_heads)
        weight["q_proj"][head * dim + pair, _KEY + pair] = size
        weight["k_proj"][group * dim + pair, _AFTER_KEY + pair] = size
        for kv_head in range(config.num_key_value_heads):
            weight["v_proj"][kv_head * dim + pair, _VALUE + pair] = 1.0
            first_head = kv_head * (config.num_attention_heads // config.num_key_value_heads)
            weight["o_proj"][_ANSWER + pair, first_head * dim + pair] = answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Passkey:
    """One needle: `key` is followed by `value` at `position` (of the key) in the prompt, and nowhere else."""

    position: int
    key: int
    value: int

    def question(self) -> NDArray[np.int32]:
        """Tokens to append; the logits of the last one answer. Filler keeps questions apart."""
        return np.array([_FIRST_FILLER, self.key], np.int32)


def key_copy_channel(needle: Passkey) -> int:
    """Channel of the residual stream by which layer 0 tells a token that the needle's key is before it."""
    return _AFTER_KEY + needle.key - _FIRST_KEY


def passkey_prompt(length: int, positions: Sequence[int], seed: int = 0) -> tuple[NDArray[np.int32], list[Passkey]]:
    """Filler of `length` tokens, int32, with a needle of two tokens at each of the ascending `positions`."""
    random = np.random.default_rng(seed)
    tokens = random.integers(_FIRST_FILLER, _VOCAB_SIZE, length, dtype=np.int32)
    keys, values = (random.permutation(PAIRS)[: len(positions)] for _ in range(2))
    needles = [
        Passkey(position=position, key=int(_FIRST_KEY + key), value=int(_FIRST_VALUE + value))
        for position, key, value in zip(positions, keys, values, strict=True)
    ]
    for needle in needles:
        tokens[needle.position : needle.position + 2] = needle.key, needle.value
    return tokens, needles


def needle_positions(length: int, depths: Sequence[float] = DEPTHS) -> list[int]:
    """Positions of keys in a prompt: at 0 the prompt begins with one, at 1 it ends with its value."""
    return [round(depth * (length - 2)) for depth in depths]


def write_passkey_samples(path: Path, *, prompts: int = 8, length: int = 320) -> Path:
    """Calibration lines for `quantize`: prompts with questions, in which every key and value occurs; returns `path`."""
    lines = []
    for seed in range(prompts):
        tokens, needles = passkey_prompt(length, needle_positions(length), seed)
        asked = np.concatenate([tokens, *(needle.question() for needle in needles)])
        lines.append(json.dumps({"input_ids": asked.tolist()}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def in_pieces(tokens: NDArray[np.int32], sizes: Sequence[int]) -> Iterator[NDArray[np.int32]]:
    """The tokens in pieces whose sizes repeat."""
    start, turn = 0, 0
    while start < len(tokens):
        size = sizes[turn % len(sizes)]
        yield tokens[start : start + size]
        start, turn = start + size, turn + 1
