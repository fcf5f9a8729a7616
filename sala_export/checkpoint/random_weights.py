"""Random weights whose activations are sized like those of a trained model.

Each tensor has its own distribution, from the structure of the model: projections of a normed input give unit variance
(queries and keys of sparse layers more, so that attention is far from uniform), outputs of blocks give unit variance
before the residual scale, logits have a standard deviation of `LOGIT_STD`. A few channels of the residual stream carry
a large, nearly constant value, as trained models have; norm weights shrink it again on the way into each block, or else
it would be the same for every token and drown the rest. A few other channels are *salient*: norm weights enlarge them,
so that they stand out of the inputs of projections by an order of magnitude, and the columns that read them are
smaller, though not by as much. This is what makes trained models hard to quantise, and the function is no other for it.

Nothing depends on the number of layers, so a shorter model has the same tensors as a longer one of the same seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .config import Mixer, SalaConfig
from .keymap import Weight

LOGIT_STD = 3.0
"""Standard deviation of the logits that the scales aim at."""
OUTLIER_VALUE = 32.0
"""Size of an outlier channel in the scaled embedding, whose other channels have a standard deviation of 1."""

SALIENT_NORM_WEIGHT = 24.0
"""Norm weight of a salient channel, those of others being about 1."""

_SALIENT_COLUMN = 1 / 8
"""Standard deviation of the weights that read a salient channel, relative to others."""
_OUTLIER_NORM_WEIGHT = 1 / 32
_JITTER = 0.1
"""Relative standard deviation of norm weights and of outlier values."""
_SPARSE_QK_STD = 1.5
_SPARSE_OUTPUT_VARIANCE = 1 / 8
"""Assumed variance of attention outputs over a few hundred tokens, for values of variance 1."""
_GATE_SQUARE = 0.293
"""Mean of sigmoid(x)^2 for x normal with variance 1."""
_SWIGLU_SQUARE = 0.356
"""Mean of (silu(x) y)^2 for x, y normal with variance 1."""

_BLOCK_ELEMENTS = 1 << 22

Bits = NDArray[np.uint16]
"""16 bits each, little endian: bfloat16 numbers, or random bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Normal, except in the outlier columns (positions in the last dimension)."""

    mean: float = 0.0
    std: float
    outliers: Mapping[int, float] = field(default_factory=dict)
    """Mean by column; the standard deviation there is `_JITTER` of it."""
    small: frozenset[int] = frozenset()
    """Columns with `_SALIENT_COLUMN` of the standard deviation."""

    def own_columns(self) -> Iterator[tuple[int, float, float]]:
        """Columns that differ from the others: position, mean, standard deviation."""
        for column, mean in self.outliers.items():
            yield column, mean, abs(mean) * _JITTER
        for column in self.small:
            yield column, self.mean, self.std * _SALIENT_COLUMN


class RandomWeights:
    """The weights of a model: a function of its configuration and a seed, each tensor on its own."""

    def __init__(self, config: SalaConfig, seed: int, *, salient: bool = True) -> None:
        """Args: `salient`, whether there are salient channels."""
        self.config = config
        self.seed = seed
        self.outlier_channels, chosen = self._choose_channels()
        self.salient_channels = chosen if salient else ()
        # Each of the two blocks of a layer adds scale_depth^2 / layers to the variance of every channel.
        self._by_role = self._distributions(halfway=config.scale_depth**2, final=2 * config.scale_depth**2)

    def distribution(self, weight: Weight) -> Distribution:
        """How the elements of `weight` are drawn."""
        mixer = "" if weight.layer is None else self.config.mixer_types[weight.layer]
        return self._by_role.get(f"{mixer} {weight.role}", self._by_role[weight.role])

    def blocks(self, weight: Weight) -> Iterator[Bits]:
        """The elements of `weight` in memory order, in blocks of a few megabytes."""
        distribution = self.distribution(weight)
        table = _table(distribution.mean, distribution.std)
        for draws in self.draws(weight):
            block = table[draws]
            for column, mean, std in distribution.own_columns():
                block[:, column] = _table(mean, std)[draws[:, column]]
            yield block

    def entropy(self, weight: Weight) -> int:
        """128 bits for the generator of one tensor."""
        return _entropy(self.seed, weight.name)

    def draws(self, weight: Weight) -> Iterator[Bits]:
        """The 16 random bits behind each element of `weight` [rows, columns], in blocks of whole rows."""
        columns = weight.shape[-1]
        rows = math.prod(weight.shape[:-1])
        source = np.random.SFC64(self.entropy(weight))
        rows_per_block = max(1, _BLOCK_ELEMENTS // columns)
        for first in range(0, rows, rows_per_block):
            count = min(rows_per_block, rows - first)
            words = source.random_raw(-(-count * columns // 4))
            yield words.astype("<u8", copy=False).view("<u2")[: count * columns].reshape(count, columns)

    def _choose_channels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the residual stream: outliers, one channel in 1024, and salient ones, one in 128; of each at least two."""
        hidden = self.config.hidden_size
        order = np.argsort(np.random.SFC64(_entropy(self.seed, "outlier channels")).random_raw(hidden)).tolist()
        outliers, salient = max(2, hidden // 1024), max(2, hidden // 128)
        return tuple(sorted(order[:outliers])), tuple(sorted(order[outliers : outliers + salient]))

    def _distributions(self, halfway: float, final: float) -> dict[str, Distribution]:
        """By role; `<mixer> <role>` where a mixer differs. Arguments: variance added by blocks so far."""
        config = self.config
        width = config.num_attention_heads * config.head_dim
        values = {c: OUTLIER_VALUE * (-1) ** i for i, c in enumerate(self.outlier_channels)}

        def projection(
            inputs: int, mean_square: float, std: float = 1.0, small: frozenset[int] = frozenset()
        ) -> Distribution:
            """Outputs of standard deviation `std` from `inputs` channels of the given mean square."""
            return Distribution(std=std / math.sqrt(inputs * mean_square), small=small)

        hidden, normed = config.hidden_size, self._normed_square(halfway, SALIENT_NORM_WEIGHT * _SALIENT_COLUMN)
        salient = frozenset(self.salient_channels)
        from_hidden = projection(hidden, normed, small=salient)
        norm = Distribution(mean=1.0, std=_JITTER, outliers=dict.fromkeys(values, _OUTLIER_NORM_WEIGHT))
        block_norm = replace(norm, outliers={**norm.outliers, **dict.fromkeys(salient, SALIENT_NORM_WEIGHT)})
        head_norm = Distribution(mean=1.0, std=_JITTER)
        return {
            "embed_tokens": Distribution(
                std=1.0 / config.scale_emb, outliers={c: v / config.scale_emb for c, v in values.items()}
            ),
            "norm": norm,
            **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), block_norm),
            **dict.fromkeys(("q_norm", "k_norm", "o_norm"), head_norm),
            **dict.fromkeys(("q_proj", "k_proj", "v_proj", "z_proj", "o_gate", "gate_proj", "up_proj"), from_hidden),
            **dict.fromkeys(
                (f"{Mixer.SPARSE} q_proj", f"{Mixer.SPARSE} k_proj"),
                projection(hidden, normed, _SPARSE_QK_STD, salient),
            ),
            "o_proj": projection(width, _GATE_SQUARE),
            f"{Mixer.SPARSE} o_proj": projection(width, _GATE_SQUARE * _SPARSE_OUTPUT_VARIANCE),
            "down_proj": projection(config.intermediate_size, _SWIGLU_SQUARE),
            "lm_head": projection(hidden, self._normed_square(final, 1.0), LOGIT_STD * config.logit_divisor),
        }

    def _normed_square(self, added: float, salient_factor: float) -> float:
        """Mean square over channels after RMSNorm and its weight, once blocks have added variance `added`.

        Args: `salient_factor`, what salient channels are multiplied by in all, the columns that read them included.
        """
        share = len(self.outlier_channels) / self.config.hidden_size
        salient = len(self.salient_channels) / self.config.hidden_size
        regular, outlier = 1.0 + added, OUTLIER_VALUE**2 + added
        weighted = (1 - share + salient * (salient_factor**2 - 1)) * regular
        weighted += share * outlier * _OUTLIER_NORM_WEIGHT**2
        return (1 + _JITTER**2) * weighted / ((1 - share) * regular + share * outlier)


def _entropy(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")


@cache
def normal_quantiles() -> NDArray[np.float64]:
    """The standard normal at the middle of each of 65536 equally likely intervals."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])


@cache
def _table(mean: float, std: float) -> Bits:
    """bfloat16 by 16 random bits: sampling is then one look-up per element, at the speed of memory."""
    bits = (mean + std * normal_quantiles()).astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2")
