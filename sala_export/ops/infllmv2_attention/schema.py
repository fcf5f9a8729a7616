"""Contract of `sala::InfLLMv2Attention`. The equations are in README.md beside this file."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.contract import ACTIVATION, Attribute, Contract, Rule, Tensor

_CACHE = ("B", "num_kv_heads", "C", "head_dim")
_K1 = ("B", "num_kv_heads", "C1", "head_dim")
_K2 = ("B", "num_kv_heads", "C2", "head_dim")


def _cache_pair(name: str, shape: tuple[str, ...], doc: str) -> tuple[Tensor, Tensor]:
    return (
        Tensor(name=name, dtype=ACTIVATION, shape=shape, doc=doc),
        Tensor(name=f"{name}_out", dtype=ACTIVATION, shape=shape, doc=f"{name} after the chunk.", updates=name),
    )


_CACHES = (
    _cache_pair("k_cache", _CACHE, "Keys; rows 0 .. past_length - 1 are valid on entry."),
    _cache_pair("v_cache", _CACHE, "Values; rows 0 .. past_length - 1 are valid on entry."),
    _cache_pair("k1_cache", _K1, "Means of kernel_size keys every kernel_stride keys; complete windows are valid."),
    _cache_pair("k2_cache", _K2, "Means of 4 kernel_size keys every 4 kernel_stride keys; used for the log-sum-exp."),
)

CONTRACT = Contract(
    name="infllmv2_attention",
    onnx_type="InfLLMv2Attention",
    doc=(
        "InfLLM-v2 block-sparse attention over a growing cache, from packed projection to the input of o_proj: append "
        "keys and values, extend the compressed keys, attend densely or to selected blocks, sigmoid gate. No RoPE."
    ),
    dims={
        "B": "batch",
        "T": "tokens of this chunk, at least 1; every token of every row is real (no padding)",
        "C": "capacity of the caches in tokens, at least past_length + T",
        "C1": "capacity of k1_cache in compressed keys",
        "C2": "capacity of k2_cache in compressed keys",
    },
    inputs=(
        Tensor(
            name="qkvg",
            dtype=ACTIVATION,
            shape=("B", "T", "2 * (num_heads + num_kv_heads) * head_dim"),
            doc="Projections of the mixer input, in the order q, k, v, gate; heads contiguous within each.",
        ),
        Tensor(
            name="past_length",
            dtype="int32",
            shape=("B",),
            doc="Tokens already in the caches; row t of the chunk has position past_length + t.",
        ),
        Tensor(
            name="context_length",
            dtype="int32",
            shape=("B",),
            doc=(
                "Tokens of the whole context, at least past_length + T; the row is sparse iff this is at least "
                "dense_len. It decides nothing else."
            ),
        ),
        *(before for before, _ in _CACHES),
    ),
    outputs=(
        Tensor(
            name="y",
            dtype=ACTIVATION,
            shape=("B", "T", "num_heads * head_dim"),
            doc="Gated attention output, ready for o_proj.",
        ),
        *(after for _, after in _CACHES),
    ),
    attributes=(
        Attribute(name="num_heads", type=int, doc="Query heads."),
        Attribute(name="num_kv_heads", type=int, doc="Key and value heads G; num_heads / G query heads share each."),
        Attribute(name="head_dim", type=int, doc="Channels of a head."),
        Attribute(name="scale", type=float, doc="Factor on q k^T, 1/sqrt(head_dim) in SALA."),
        Attribute(name="kernel_size", type=int, doc="Keys averaged into one k1 key; k2 averages 4 times as many."),
        Attribute(name="kernel_stride", type=int, doc="Keys between k1 windows; k2 strides 4 times as far."),
        Attribute(name="block_size", type=int, doc="Keys of a block, the unit of selection; a multiple of the stride."),
        Attribute(name="topk", type=int, doc="A query takes topk + window_size / block_size blocks, forced included."),
        Attribute(name="window_size", type=int, doc="Keys of the local window; a multiple of block_size."),
        Attribute(name="init_blocks", type=int, doc="Blocks at the start of the context that every query takes."),
        Attribute(name="dense_len", type=int, doc="Contexts shorter than this attend densely; -1: none does."),
    ),
    rules=(
        Rule(left="num_heads", relation=">=", right="1", doc="there is at least one query head"),
        Rule(left="num_kv_heads", relation=">=", right="1", doc="there is at least one key head"),
        Rule(left="head_dim", relation=">=", right="1", doc="a head has at least one channel"),
        Rule(left="kernel_size", relation=">=", right="1", doc="a window holds at least one key"),
        Rule(left="kernel_stride", relation=">=", right="1", doc="neighbouring windows differ"),
        Rule(left="block_size", relation=">=", right="1", doc="a block holds at least one key"),
        Rule(left="window_size", relation=">=", right="0", doc="a window of no keys leaves the query's own block"),
        Rule(left="init_blocks", relation=">=", right="0", doc="no query takes fewer than no initial blocks"),
        Rule(left="T", relation=">=", right="1", doc="a chunk holds at least one token"),
        Rule(left="C", relation=">=", right="T", doc="the chunk must fit the cache"),
        Rule(
            left="C1",
            relation=">=",
            right="fdiv(C - kernel_size, kernel_stride) + 1",
            doc="k1_cache and k2_cache hold every complete window of a full cache",
        ),
        Rule(
            left="C2",
            relation=">=",
            right="fdiv(C - 4 * kernel_size, 4 * kernel_stride) + 1",
            doc="k1_cache and k2_cache hold every complete window of a full cache",
        ),
        Rule(
            left="num_kv_heads * fdiv(num_heads, num_kv_heads)",
            relation="==",
            right="num_heads",
            doc="query heads divide evenly among key heads",
        ),
        Rule(
            left="kernel_stride * fdiv(block_size, kernel_stride)",
            relation="==",
            right="block_size",
            doc="a block holds a whole number of strides",
        ),
        Rule(
            left="kernel_size",
            relation=">=",
            right="kernel_stride + 1",
            doc="windows overlap, so that no complete one scores a block after the query's own",
        ),
        Rule(
            left="block_size * fdiv(window_size, block_size)",
            relation="==",
            right="window_size",
            doc="a window that is not a multiple of block_size would hold a part of a block",
        ),
        Rule(
            left="topk",
            relation=">=",
            right="init_blocks + 1",
            doc="the forced blocks must fit among the taken ones: initial, window and own",
        ),
    ),
)

PUBLISHED: Mapping[str, int | float] = {
    "num_heads": 32,
    "num_kv_heads": 2,
    "head_dim": 128,
    "scale": 128**-0.5,
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "topk": 64,
    "window_size": 2048,
    "init_blocks": 1,
    "dense_len": 8192,
}
"""Attributes in the published model, for tests and benchmarks; an exported graph states its own."""
