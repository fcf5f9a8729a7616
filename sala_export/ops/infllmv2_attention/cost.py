"""What the InfLLMv2Attention kernels move and compute, and the least that any do.

Bytes are those of device memory, each distinct byte once per launch: tiles of tokens that run side by side read the
same keys, which the first brings into the L2 cache. What they ask the cache for in all is `bytes_from_cache`. A chunk
is taken for the end of its prompt, which decides whether it is sparse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..common.cost import KernelCost
from . import tiles

_FLOAT_BYTES = _INDEX_BYTES = 4
_ROWS = tiles.CONSTANTS["GROUP_ROWS"]
_SURVIVORS = 296
"""The most survivors of a tile's tokens: those of Gaussian keys at 1M (README.md)."""
CODED_KEYS = tiles.CONSTANTS["CODED_KEYS"]
"""k1 keys of a cache up to which there are bounds."""


class _Shape:
    """A call's sizes: names of the contract, and what follows from them."""

    def __init__(
        self, attributes: Mapping[str, int | float], batch: int, tokens: int, past_length: int, activation_bytes: int
    ) -> None:
        self.heads, self.groups = int(attributes["num_heads"]), int(attributes["num_kv_heads"])
        self.dim = int(attributes["head_dim"])
        self.size, self.stride = int(attributes["kernel_size"]), int(attributes["kernel_stride"])
        self.block = int(attributes["block_size"])
        self.window_blocks = int(attributes["window_size"]) // self.block
        self.init_blocks = int(attributes["init_blocks"])
        self.limit = int(attributes["topk"]) - 1 - self.init_blocks
        dense_len = int(attributes["dense_len"])
        self.batch, self.tokens, self.past = batch, tokens, past_length
        self.end = past_length + tokens
        self.is_sparse = self.end >= dense_len
        self.element = activation_bytes
        self.key_row = self.groups * self.dim * activation_bytes

    def windows(self, keys: int, factor: int) -> int:
        """Complete windows in so many keys; factor 1 for k1, 4 for k2."""
        return max(0, (keys - factor * self.size) // (factor * self.stride) + 1)

    def forced_keys(self, position: int) -> int:
        """Keys that a token sees in its initial and local blocks, or in dense mode at all."""
        own = position // self.block
        local = max(own - self.window_blocks, 0) if self.is_sparse else 0
        return position + 1 - local * self.block + min(self.init_blocks, local) * self.block

    def candidates(self, position: int) -> int:
        """Blocks of which a token chooses: all but the forced ones."""
        own = position // self.block
        return max(own - self.window_blocks - self.init_blocks, 0) if self.is_sparse else 0

    def chosen(self, position: int) -> int:
        """Blocks beyond the forced ones."""
        return min(self.candidates(position), self.limit)

    def is_contested(self, position: int) -> bool:
        """There are more candidates than may be chosen, so that they are scored."""
        return self.candidates(position) > self.limit

    def is_bounded(self, position: int, sm: int) -> bool:
        """The tile whose last token this is takes bounds of the scores first."""
        least = tiles.BOUNDED_BLOCKS[sm]
        is_enough = self.tokens >= tiles.CONSTANTS["BOUNDED_TOKENS"] and self.candidates(position) >= least
        has_room = self.end <= CODED_KEYS * self.stride
        return least > 0 and is_enough and has_room and self.is_contested(position)

    @property
    def positions(self) -> range:
        return range(self.past, self.end)


def costs(
    attributes: Mapping[str, int | float],
    *,
    batch: int,
    tokens: int,
    past_length: int = 0,
    activation_bytes: int = 2,
    union_share: float = 1.0,
    sm: int = 120,
) -> tuple[KernelCost, ...]:
    """Every launch of one call, in order: those of decode for one token, else those of prefill.

    Args: all attributes of the operator by name; a prompt of `past_length + tokens` decides whether it is sparse;
        `union_share`, the different blocks that the tokens of a gather tile choose, as a fraction of the sum of their
        lists: 1 without any overlap; `sm`, the architecture whose tiles are counted.
    """
    shape = _Shape(attributes, batch, tokens, past_length, activation_bytes)
    if tokens == 1:
        return *_decode_select(shape), *_decode_attend(shape)
    quantize = (_quantize(shape, sm),) if _may_bound(shape, sm) else ()
    return _append(shape), *quantize, _select(shape, sm), _attend(shape), *_gather(shape, union_share, sm)


def floor(
    attributes: Mapping[str, int | float],
    *,
    batch: int,
    tokens: int,
    past_length: int = 0,
    activation_bytes: int = 2,
    sm: int = 120,
) -> KernelCost:
    """The least of any implementation: each key that is needed read once, scores and attention computed once.

    Where the kernels of architecture `sm` bound scores first, those of k1 are products of int8. One that bounds earlier
    could do with less.
    """
    shape = _Shape(attributes, batch, tokens, past_length, activation_bytes)
    contested = [position for position in shape.positions if shape.is_contested(position)]
    bounded = sum(shape.windows(p + 1, 1) for p in contested if shape.is_bounded(p, sm))
    scores = sum(shape.windows(p + 1, 1) + shape.windows(p + 1, 4) for p in contested) - bounded
    keys = sum(shape.forced_keys(p) + shape.chosen(p) * shape.block for p in shape.positions)
    compressed = shape.windows(shape.end, 1) + shape.windows(shape.end, 4) if contested else 0
    touched = min(shape.end, keys)
    row = batch * tokens * shape.dim * activation_bytes
    new_windows = sum(shape.windows(shape.end, f) - shape.windows(shape.past, f) for f in (1, 4))
    return KernelCost(
        kernel="infllmv2_attention",
        bytes_read=row * 2 * (shape.heads + shape.groups) + batch * shape.key_row * (compressed + 2 * touched),
        bytes_written=row * shape.heads + batch * shape.key_row * (2 * tokens + new_windows),
        operations=2 * batch * shape.heads * shape.dim * (scores + 2 * keys),
        int8_operations=2 * batch * shape.heads * shape.dim * bounded,
    )


def scored_after_bounds(limit: int) -> int:
    """Blocks of a token that are scored exactly after bounds, in whole turns: `limit` chosen ones, and survivors."""
    turn = tiles.SELECT[120].constexprs["BLOCK_B"]
    return sum(-(-blocks // turn) * turn for blocks in (max(limit, 1), _SURVIVORS))


def _may_bound(shape: _Shape, sm: int) -> bool:
    """The launch that quantises keys has programs, whatever the context."""
    return tiles.BOUNDED_BLOCKS[sm] > 0 and shape.tokens >= tiles.CONSTANTS["BOUNDED_TOKENS"]


def _append(shape: _Shape) -> KernelCost:
    new = [shape.windows(shape.end, factor) - shape.windows(shape.past, factor) for factor in (1, 4)]
    before = min(shape.past, 4 * shape.size)
    return KernelCost(
        kernel="infllmv2_append_kernel",
        bytes_read=shape.batch * shape.key_row * (2 * shape.tokens + before),
        bytes_written=shape.batch * shape.key_row * (2 * shape.tokens + sum(new)),
        operations=0,
    )


def _quantize(shape: _Shape, sm: int) -> KernelCost:
    """The codes of all k1 keys, and a step for each, if the last tile asks for them."""
    keys = shape.windows(shape.end, 1) if shape.is_bounded(shape.end - 1, sm) else 0
    return KernelCost(
        kernel="infllmv2_quantize_keys_kernel",
        bytes_read=shape.batch * keys * shape.key_row,
        bytes_written=shape.batch * keys * _code_row(shape),
        operations=0,
    )


def _code_row(shape: _Shape) -> int:
    """Bytes of the codes of a k1 key and of its steps."""
    return shape.groups * (shape.dim + _FLOAT_BYTES)


def _select(shape: _Shape, sm: int) -> KernelCost:
    """Scores of tiles of tokens against the keys that the last of them sees; nothing where all candidates are taken.

    The scores stay in the L2 cache, whose scratch holds those of the programs that run. Each is written once and read
    twice, for the maxima of groups and for the list of survivors, and once more after bounds. Neighbours are taken to
    choose different blocks, the most that there is to write. No tile is taken to have more survivors than room.
    """
    tile = tiles.SELECT_TOKENS
    last_of_tiles = [min(start + tile, shape.end) - 1 for start in range(shape.past, shape.end, tile)]
    contested = [p for p in last_of_tiles if shape.is_contested(p)]
    bounded = [p for p in contested if shape.is_bounded(p, sm)]
    codes = sum(shape.windows(p + 1, 1) for p in bounded)
    keys = sum(shape.windows(p + 1, 1) + shape.windows(p + 1, 4) for p in contested) - codes
    scores = sum(shape.candidates(p) for p in shape.positions if shape.is_contested(p))
    scores_again = tile * sum(shape.candidates(p) for p in bounded)
    # Each block with the key before it.
    exact = len(bounded) * tile * scored_after_bounds(shape.limit) * (shape.block // shape.stride + 1)
    compressed = shape.windows(shape.end, 1) + shape.windows(shape.end, 4) if contested else 0
    queries = shape.tokens * shape.heads * shape.dim * shape.element
    # A token's list and its share of the union's, whose sizes are few.
    written = 2 * shape.tokens * shape.groups * max(shape.limit, 1) * _INDEX_BYTES if shape.is_sparse else 0
    # The log-sum-exp of each row, for the exact scores.
    written += len(bounded) * tile * shape.groups * _ROWS * _FLOAT_BYTES
    read = (queries if contested else 0) + compressed * shape.key_row
    read += shape.windows(shape.end, 1) * _code_row(shape) if bounded else 0
    of_scores = shape.groups * (3 * scores + scores_again) * _FLOAT_BYTES
    per_row = 2 * shape.batch * shape.groups * _ROWS * shape.dim
    return KernelCost(
        kernel="infllmv2_select_kernel",
        bytes_read=shape.batch * read,
        bytes_written=shape.batch * written,
        operations=per_row * (tile * keys + exact),
        int8_operations=per_row * tile * codes,
        bytes_from_cache=shape.batch * ((keys + exact) * shape.key_row + codes * _code_row(shape) + of_scores),
    )


def _attend(shape: _Shape) -> KernelCost:
    """The forced blocks, or all keys in dense mode, for tiles of tokens."""
    tile = tiles.ATTEND[120].constexprs["BLOCK_T"]
    keys = 0
    for start in range(shape.past, shape.end, tile):
        last = min(start + tile, shape.end) - 1
        keys += shape.forced_keys(last) + (start // shape.block != last // shape.block) * shape.block
    read = min(shape.end, shape.tokens + (shape.window_blocks + 1 + shape.init_blocks) * shape.block)
    read = read if shape.is_sparse else shape.end
    rows = shape.tokens * shape.heads * shape.dim * shape.element
    log_sums = shape.tokens * shape.groups * _ROWS * _FLOAT_BYTES
    return KernelCost(
        kernel="infllmv2_attend_kernel",
        bytes_read=shape.batch * (2 * rows + 2 * read * shape.key_row),
        bytes_written=shape.batch * (rows + log_sums),
        operations=4 * shape.batch * shape.groups * tile * _ROWS * shape.dim * keys,
    )


def _gather(shape: _Shape, union_share: float, sm: int) -> tuple[KernelCost, KernelCost]:
    """The chosen blocks, tile by tile with the kernel in charge; each distinct key at most once from device memory.

    The union kernel computes all rows of its tile with every entry of the union.
    """
    tile = tiles.GATHER_UNION[sm].constexprs
    union, one = _Gathered(), _Gathered()
    for start in range(shape.past, shape.end, tile["UNION_T"]):
        end = min(start + tile["UNION_T"], shape.end)
        counts = [shape.chosen(position) for position in range(start, end)]
        chosen, goes_on = sum(counts), sum(count > 0 for count in counts)
        # Not fewer than any token chooses, and not more than the last can choose of.
        entries = min(max(max(counts), math.ceil(union_share * chosen)), shape.candidates(end - 1))
        if not chosen:
            continue
        if entries * 100 <= chosen * tile["UNION_LIMIT"]:
            union.add(tokens=goes_on, blocks=entries, computed=entries * tile["UNION_T"], indices=entries + 1)
        else:
            one.add(tokens=goes_on, blocks=chosen, computed=chosen, indices=goes_on * max(shape.limit, 1) + 1)
    return union.cost("infllmv2_gather_union_kernel", shape), one.cost("infllmv2_gather_kernel", shape)


class _Gathered:
    """What one of the gather kernels does for its tiles of one key head."""

    def __init__(self) -> None:
        self.tokens = self.blocks = self.computed = self.indices = 0

    def add(self, *, tokens: int, blocks: int, computed: int, indices: int) -> None:
        """One more tile: its tokens with chosen blocks, blocks read, blocks times tokens computed, indices read."""
        self.tokens += tokens
        self.blocks += blocks
        self.computed += computed
        self.indices += indices

    def cost(self, kernel: str, shape: _Shape) -> KernelCost:
        rows = self.tokens * shape.heads * shape.dim * shape.element
        lists = shape.groups * (self.indices * _INDEX_BYTES + self.tokens * _ROWS * _FLOAT_BYTES)
        keys = self.blocks * shape.block
        return KernelCost(
            kernel=kernel,
            bytes_read=shape.batch * (3 * rows + lists + 2 * min(shape.end, keys) * shape.key_row),
            bytes_written=shape.batch * rows,
            operations=4 * shape.batch * shape.groups * _ROWS * shape.dim * self.computed * shape.block,
            bytes_from_cache=2 * shape.batch * keys * shape.key_row,
        )


def _decode_select(shape: _Shape) -> tuple[KernelCost, KernelCost]:
    contested = shape.is_contested(shape.past)
    splits = tiles.CONSTANTS["SELECT_SPLITS"]
    rows = shape.batch * shape.groups
    query = shape.batch * shape.heads * shape.dim * shape.element
    sums = rows * splits * _ROWS * _FLOAT_BYTES
    seen = [shape.windows(shape.end, factor) if contested else 0 for factor in (1, 4)]
    old = shape.windows(shape.past, 4) if contested else 0
    per_key = 2 * rows * _ROWS * shape.dim
    append = _append(shape)
    return (
        KernelCost(
            kernel="infllmv2_decode_normalise_kernel",
            # The k2 key that the token completes is not read back.
            bytes_read=append.bytes_read + contested * query + shape.batch * old * shape.key_row,
            bytes_written=append.bytes_written + contested * sums,
            operations=per_key * seen[1],
        ),
        KernelCost(
            kernel="infllmv2_decode_score_kernel",
            bytes_read=contested * (query + sums) + shape.batch * seen[0] * shape.key_row,
            bytes_written=rows * shape.candidates(shape.past) * _FLOAT_BYTES if contested else 0,
            # Each block multiplies the key that it shares with the one before, too.
            operations=per_key * (seen[0] + (shape.candidates(shape.past) if contested else 0)),
        ),
    )


def _decode_attend(shape: _Shape) -> tuple[KernelCost, KernelCost]:
    keys = shape.forced_keys(shape.past) + shape.chosen(shape.past) * shape.block
    splits = tiles.CONSTANTS["ATTEND_SPLITS"]
    query = shape.batch * shape.heads * shape.dim * shape.element
    blocks = -(-keys // shape.block)
    rows = shape.batch * shape.groups
    parts = rows * min(splits, blocks) * _ROWS * (shape.dim + 1) * _FLOAT_BYTES
    # Every program reads them, and all but the first from the L2 cache.
    scores = rows * shape.candidates(shape.past) * _FLOAT_BYTES if shape.is_contested(shape.past) else 0
    chosen = rows * max(shape.limit, 1) * _INDEX_BYTES if shape.is_sparse else 0
    return (
        KernelCost(
            kernel="infllmv2_decode_attend_kernel",
            bytes_read=query + scores + 2 * shape.batch * keys * shape.key_row,
            bytes_written=parts + chosen,
            operations=4 * shape.batch * shape.groups * _ROWS * shape.dim * keys,
        ),
        KernelCost(
            kernel="infllmv2_decode_merge_kernel",
            bytes_read=parts + query,
            bytes_written=query,
            operations=0,
        ),
    )
