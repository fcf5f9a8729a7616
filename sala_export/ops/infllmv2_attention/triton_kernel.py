"""InfLLMv2Attention on the GPU: the launches. Equations: README.md; kernels: `*_kernel.py` beside this file.

B batch, T tokens of the chunk, G key heads, D head dim; X the activation type.

Prefill: append (with compress), quantise (k1 of long contexts), select, attend (forced blocks, or everything in dense
mode), gather (chosen blocks) in two launches: tiles of tokens that have many in common, and single tokens.
Decode: append and normalise, score, choose and attend, merge, all split over the context with grids that depend on
shapes alone. All of a group's query heads go through one dot tile of GROUP_ROWS rows for each token, the smallest that
a tensor core takes; smaller groups leave rows unused. Loops over the context are bounded by `past_length`, read on the
device; the host cannot check it, so every kernel clamps it to what the caches hold.
"""

from __future__ import annotations

from ..common.contract import Rule
from ..common.launch import HEAD_DIMS, KernelSet, Launch, Product, Workspace
from . import tiles
from .append_kernel import infllmv2_append_kernel
from .attend_kernel import infllmv2_attend_kernel
from .decode_attend_kernel import infllmv2_decode_attend_kernel, infllmv2_decode_merge_kernel
from .decode_select_kernel import infllmv2_decode_normalise_kernel, infllmv2_decode_score_kernel
from .gather_kernel import infllmv2_gather_kernel, infllmv2_gather_union_kernel
from .quantize_keys_kernel import infllmv2_quantize_keys_kernel
from .select_kernel import infllmv2_select_kernel

_PREFILL_TOKENS = "T * min(T - 1, 1)"
"""None for one token, which is not prefilled."""
_CHOSEN = "max(topk - 1 - init_blocks, 1)"
_BLOCKS = "cdiv(C, block_size)"
_SCORE_TURNS = f"cdiv({_BLOCKS}, COLUMNS)"
_LIKELY = (
    # None where one turn takes all scores.
    f"min({_SCORE_TURNS} - 1, 1)",
    "B",
    "num_kv_heads",
    "ATTEND_SPLITS",
    f"cdiv({_CHOSEN} * ({_SCORE_TURNS} + 1), COLUMNS)",
    "COLUMNS",
)
_SELECT_ROWS = f"{tiles.SELECT_TOKENS} * min(cdiv(T, {tiles.SELECT_TOKENS}) * num_kv_heads * B, SELECT_PROGRAMS)"

_KEYS = "cdiv(C, kernel_stride)"
_CODES = f"{_KEYS} * min(fdiv(CODED_KEYS, {_KEYS}), 1)"
"""Rows for the codes of k1 keys: as many as there can be, or none. Shapes know no tiles: SM90 has them in vain."""
_QUANTIZED = f"cdiv({_CODES}, QUANTIZED_KEYS)"
_IS_BOUNDED = "min(fdiv(T, BOUNDED_TOKENS), 1)"
"""1 for a chunk whose tiles may score bounds, else 0."""


def _attention(rows: str) -> tuple[Product, Product]:
    return Product(m=rows, n="BLOCK_N", k="head_dim"), Product(m=rows, n="head_dim", k="BLOCK_N")


_PREFILL = (
    Launch(kernel=infllmv2_append_kernel, grid=("cdiv(T, BLOCK_T)", "num_kv_heads", "B"), tiles=tiles.APPEND),
    Launch(
        kernel=infllmv2_quantize_keys_kernel,
        # None where no tile would ask for them.
        grid=(f"{_QUANTIZED} * min(BOUNDED_BLOCKS, 1) * {_IS_BOUNDED}", "num_kv_heads", "B"),
        tiles=tiles.QUANTIZE_KEYS,
    ),
    Launch(
        kernel=infllmv2_select_kernel,
        grid=("cdiv(T, BLOCK_T)", "num_kv_heads", "B"),
        tiles=tiles.SELECT,
        main_loop=(
            Product(m="BLOCK_K", n="BLOCK_T * GROUP_ROWS", k="head_dim"),
            # The same of codes, where there are bounds.
            Product(m="BLOCK_K * min(BOUNDED_BLOCKS, 1)", n="BLOCK_T * GROUP_ROWS", k="head_dim", operand="int8"),
        ),
    ),
    Launch(
        kernel=infllmv2_attend_kernel,
        grid=("cdiv(T, BLOCK_T)", "num_kv_heads", "B"),
        tiles=tiles.ATTEND,
        main_loop=_attention("BLOCK_T * GROUP_ROWS"),
    ),
    Launch(
        kernel=infllmv2_gather_union_kernel,
        grid=("cdiv(T, UNION_T)", "num_kv_heads", "B"),
        tiles=tiles.GATHER_UNION,
        main_loop=_attention("UNION_T * GROUP_ROWS"),
    ),
    Launch(
        kernel=infllmv2_gather_kernel,
        grid=("T", "num_kv_heads", "B"),
        tiles=tiles.GATHER,
        main_loop=_attention("GROUP_ROWS"),
    ),
)

_DECODE = (
    Launch(
        kernel=infllmv2_decode_normalise_kernel,
        grid=("SELECT_SPLITS", "num_kv_heads", "B"),
        tiles=tiles.DECODE_NORMALISE,
        dependent=True,
        main_loop=(Product(m="GROUP_ROWS", n="BLOCK_B", k="head_dim"),),
    ),
    Launch(
        kernel=infllmv2_decode_score_kernel,
        grid=("SELECT_SPLITS", "num_kv_heads", "B"),
        tiles=tiles.DECODE_SCORE,
        dependent=True,
        # One product for each k1 key of a block.
        main_loop=(Product(m="GROUP_ROWS", n="(fdiv(block_size, kernel_stride) + 1) * BLOCK_B", k="head_dim"),),
    ),
    Launch(
        kernel=infllmv2_decode_attend_kernel,
        grid=("ATTEND_SPLITS", "num_kv_heads", "B"),
        tiles=tiles.DECODE_ATTEND,
        dependent=True,
        main_loop=_attention("GROUP_ROWS"),
    ),
    Launch(
        kernel=infllmv2_decode_merge_kernel,
        grid=("cdiv(head_dim, BLOCK_D)", "num_heads", "B"),
        tiles=tiles.DECODE_MERGE,
        dependent=True,
    ),
)

KERNELS = KernelSet(
    workspaces=(
        Workspace(name="chosen", dtype="int32", shape=("B", "num_kv_heads", "T", _CHOSEN)),
        Workspace(name="union_blocks", dtype="int32", shape=("B", "num_kv_heads", _PREFILL_TOKENS, "SLOTS")),
        Workspace(name="union_size", dtype="int32", shape=("B", "num_kv_heads", _PREFILL_TOKENS)),
        Workspace(
            name="block_scores",
            dtype="float32",
            shape=(
                "min(T - 1, 1)",
                f"max({_SELECT_ROWS} * min({_BLOCKS}, SCRATCH_BLOCKS), {tiles.SELECT_TOKENS} * {_BLOCKS})",
            ),
        ),
        Workspace(
            name="survivors", dtype="int32", shape=("min(T - 1, 1)", _SELECT_ROWS, f"min({_BLOCKS}, SURVIVOR_SLOTS)")
        ),
        Workspace(
            name="survivor_count",
            dtype="int32",
            shape=("B", "num_kv_heads", f"min(T - 1, 1) * cdiv(T, {tiles.SELECT_TOKENS})"),
        ),
        Workspace(name="key_codes", dtype="int8", shape=("B", "num_kv_heads", f"{_CODES} * {_IS_BOUNDED}", "head_dim")),
        Workspace(name="key_steps", dtype="float32", shape=("B", "num_kv_heads", f"{_CODES} * {_IS_BOUNDED}")),
        Workspace(name="key_errors", dtype="float32", shape=("B", "num_kv_heads", f"{_QUANTIZED} * {_IS_BOUNDED}")),
        # The means and scales of the channels.
        Workspace(name="key_origin", dtype="float32", shape=("B", "num_kv_heads", "2", "head_dim")),
        Workspace(name="log_sum", dtype="float32", shape=("B", "num_kv_heads", _PREFILL_TOKENS, "GROUP_ROWS")),
        Workspace(name="split_log_z", dtype="float32", shape=("B", "num_kv_heads", "GROUP_ROWS", "SELECT_SPLITS")),
        Workspace(name="decode_scores", dtype="float32", shape=("B", "num_kv_heads", _SCORE_TURNS, "COLUMNS")),
        Workspace(name="likely_scores", dtype="float32", shape=_LIKELY),
        Workspace(name="likely", dtype="int32", shape=_LIKELY),
        Workspace(
            name="split_output",
            dtype="float32",
            shape=("B", "num_kv_heads", "ATTEND_SPLITS", "GROUP_ROWS", "head_dim"),
        ),
        Workspace(name="split_log_sum", dtype="float32", shape=("B", "num_kv_heads", "ATTEND_SPLITS", "GROUP_ROWS")),
    ),
    counters=(Workspace(name="select_slots", dtype="int32", shape=("SELECT_PROGRAMS",)),),
    prefill=_PREFILL,
    decode=_DECODE,
    variant_attributes=("head_dim", "block_size", "kernel_stride"),
    aot_variants=tuple({"head_dim": dim, "block_size": 64, "kernel_stride": 16} for dim in (64, 128)),
    aot_dtypes=("bfloat16", "float16"),
    constants=tiles.CONSTANTS,
    float32_head_dim=tiles.FLOAT32_HEAD_DIM,
    rules=(
        *HEAD_DIMS,
        Rule(
            left="fdiv(num_heads, num_kv_heads)",
            relation="<=",
            right=str(tiles.CONSTANTS["GROUP_ROWS"]),
            doc="the query heads of a key head share one dot tile",
        ),
        Rule(
            left="topk - init_blocks - 1",
            relation="<=",
            right=str(tiles.CONSTANTS["SLOTS"]),
            doc="the chosen blocks of a token fill a row of so many slots",
        ),
        Rule(
            left="is_power_of_two(fdiv(block_size, kernel_stride))",
            relation="==",
            right="1",
            doc="a tile of compressed keys holds those of whole blocks",
        ),
        Rule(
            left="fdiv(block_size, kernel_stride)",
            relation="<=",
            right="32",
            doc="a tile of compressed keys holds those of whole blocks",
        ),
    ),
)
