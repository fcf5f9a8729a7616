"""What the InfLLMv2Attention kernels move and compute, and the least that any do.

Bytes are those of device memory, each distinct byte once per launch: tiles of tokens that run side by side read the
same keys, which the first brings into the L2 cache. What selection asks for in all is `reread_bytes`. A chunk is taken
for the end of its prompt, which decides whether it is sparse.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.cost import KernelCost
from . import tiles

_FLOAT_BYTES = _INDEX_BYTES = 4
_ROWS = tiles.CONSTANTS["GROUP_ROWS"]


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

    def chosen(self, position: int) -> int:
        """Blocks beyond the forced ones."""
        own = position // self.block
        return min(max(own - self.window_blocks - self.init_blocks, 0), self.limit) if self.is_sparse else 0

    def is_contested(self, position: int) -> bool:
        """There are more candidates than may be chosen, so that they are scored."""
        return self.is_sparse and position // self.block - self.window_blocks - self.init_blocks > self.limit

    @property
    def positions(self) -> range:
        return range(self.past, self.end)


def costs(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> tuple[KernelCost, ...]:
    """Every launch of one call, in order: those of decode for one token, else those of prefill.

    Args: all attributes of the operator by name; a prompt of `past_length + tokens` decides whether it is sparse.
    """
    shape = _Shape(attributes, batch, tokens, past_length, activation_bytes)
    if tokens == 1:
        return _append(shape), *_decode_select(shape), *_decode_attend(shape)
    return _append(shape), _select(shape), _attend(shape), _gather(shape)


def floor(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> KernelCost:
    """The least of any implementation: each key that is needed read once, scores and attention computed once."""
    shape = _Shape(attributes, batch, tokens, past_length, activation_bytes)
    contested = [position for position in shape.positions if shape.is_contested(position)]
    scores = sum(shape.windows(p + 1, 1) + shape.windows(p + 1, 4) for p in contested)
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
    )


def reread_bytes(
    attributes: Mapping[str, int | float], *, batch: int, tokens: int, past_length: int = 0, activation_bytes: int = 2
) -> int:
    """Bytes that selection asks for, most from the L2 cache: compressed keys, once per tile of tokens, and scores.

    A score is written once and read twice, for the maxima of groups and for the list of survivors.
    """
    shape = _Shape(attributes, batch, tokens, past_length, activation_bytes)
    tile = tiles.SELECT_TOKENS
    last_of_tiles = [min(start + tile, shape.end) - 1 for start in range(shape.past, shape.end, tile)]
    keys = sum(shape.windows(p + 1, 1) + shape.windows(p + 1, 4) for p in last_of_tiles if shape.is_contested(p))
    contested = [p for p in shape.positions if shape.is_contested(p)]
    scores = sum(p // shape.block - shape.window_blocks - shape.init_blocks for p in contested)
    return batch * (keys * shape.key_row + 3 * shape.groups * scores * _FLOAT_BYTES)


def _append(shape: _Shape) -> KernelCost:
    new = [shape.windows(shape.end, factor) - shape.windows(shape.past, factor) for factor in (1, 4)]
    before = min(shape.past, 4 * shape.size)
    return KernelCost(
        kernel="infllmv2_append_kernel",
        bytes_read=shape.batch * shape.key_row * (2 * shape.tokens + before),
        bytes_written=shape.batch * shape.key_row * (2 * shape.tokens + sum(new)),
        operations=0,
    )


def _select(shape: _Shape) -> KernelCost:
    """Scores of tiles of tokens against the keys that the last of them sees; nothing where all candidates are taken.

    The scores stay in the L2 cache, whose scratch holds those of the programs that run. Neighbours are taken to choose
    different blocks, the most that there is to write.
    """
    tile = tiles.SELECT_TOKENS
    last_of_tiles = [min(start + tile, shape.end) - 1 for start in range(shape.past, shape.end, tile)]
    keys = sum(shape.windows(p + 1, 1) + shape.windows(p + 1, 4) for p in last_of_tiles if shape.is_contested(p))
    contested = any(map(shape.is_contested, last_of_tiles))
    compressed = shape.windows(shape.end, 1) + shape.windows(shape.end, 4) if contested else 0
    queries = shape.tokens * shape.heads * shape.dim * shape.element
    # A token's list and its share of the union's, whose sizes are few.
    written = 2 * shape.tokens * shape.groups * max(shape.limit, 1) * _INDEX_BYTES if shape.is_sparse else 0
    return KernelCost(
        kernel="infllmv2_select_kernel",
        bytes_read=shape.batch * ((queries if contested else 0) + compressed * shape.key_row),
        bytes_written=shape.batch * written,
        operations=2 * shape.batch * shape.groups * tile * _ROWS * shape.dim * keys,
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


def _gather(shape: _Shape) -> KernelCost:
    """The chosen blocks, token by token; each distinct key at most once from device memory."""
    chosen = sum(map(shape.chosen, shape.positions))
    goes_on = sum(shape.chosen(position) > 0 for position in shape.positions)
    rows = goes_on * shape.heads * shape.dim * shape.element
    distinct = min(shape.end, chosen * shape.block)
    lists = goes_on * shape.groups * (max(shape.limit, 1) * _INDEX_BYTES + _ROWS * _FLOAT_BYTES)
    return KernelCost(
        kernel="infllmv2_gather_kernel",
        bytes_read=shape.batch * (3 * rows + lists + 2 * distinct * shape.key_row),
        bytes_written=shape.batch * rows,
        operations=4 * shape.batch * shape.groups * _ROWS * shape.dim * chosen * shape.block,
    )


def _decode_select(shape: _Shape) -> tuple[KernelCost, KernelCost, KernelCost]:
    contested = shape.is_contested(shape.past)
    splits, slots = tiles.CONSTANTS["SELECT_SPLITS"], tiles.CONSTANTS["SLOTS"]
    rows = shape.batch * shape.groups
    query = shape.batch * shape.heads * shape.dim * shape.element
    sums, lists = rows * splits * _ROWS * _FLOAT_BYTES, rows * splits * slots * (_FLOAT_BYTES + _INDEX_BYTES)
    keys = [shape.windows(shape.end, factor) if contested else 0 for factor in (1, 4)]
    per_key = 2 * rows * _ROWS * shape.dim
    return (
        KernelCost(
            kernel="infllmv2_decode_normalise_kernel",
            bytes_read=contested * (query + shape.batch * keys[1] * shape.key_row),
            bytes_written=contested * sums,
            operations=per_key * keys[1],
        ),
        KernelCost(
            kernel="infllmv2_decode_score_kernel",
            bytes_read=contested * (query + sums + shape.batch * keys[0] * shape.key_row),
            bytes_written=contested * lists,
            operations=per_key * keys[0],
        ),
        KernelCost(
            kernel="infllmv2_decode_choose_kernel",
            bytes_read=contested * lists,
            bytes_written=rows * max(shape.limit, 1) * _INDEX_BYTES if shape.is_sparse else 0,
            operations=0,
        ),
    )


def _decode_attend(shape: _Shape) -> tuple[KernelCost, KernelCost]:
    keys = shape.forced_keys(shape.past) + shape.chosen(shape.past) * shape.block
    splits = tiles.CONSTANTS["ATTEND_SPLITS"]
    query = shape.batch * shape.heads * shape.dim * shape.element
    blocks = -(-keys // shape.block)
    parts = shape.batch * shape.groups * min(splits, blocks) * _ROWS * (shape.dim + 1) * _FLOAT_BYTES
    return (
        KernelCost(
            kernel="infllmv2_decode_attend_kernel",
            bytes_read=query + 2 * shape.batch * keys * shape.key_row,
            bytes_written=parts,
            operations=4 * shape.batch * shape.groups * _ROWS * shape.dim * keys,
        ),
        KernelCost(
            kernel="infllmv2_decode_merge_kernel",
            bytes_read=parts + query,
            bytes_written=query,
            operations=0,
        ),
    )
