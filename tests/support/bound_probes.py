"""The upper bounds of logits alone: codes of keys by their launch, and what a tile makes of them, interpreted."""

from __future__ import annotations

from dataclasses import asdict

import torch
import triton
import triton.language as tl
from torch import Tensor

from sala_export.ops.common.triton_interpreter import gpu_arithmetic
from sala_export.ops.common.triton_run import bind_kernels
from sala_export.ops.infllmv2_attention import tiles
from sala_export.ops.infllmv2_attention.quantize_keys_kernel import bounded_exponents, largest_error, quantized_queries
from sala_export.ops.infllmv2_attention.schema import CONTRACT

from .oracles import SparseSizes
from .selection_calls import bounding_kernels
from .triton_interpreter import poisoned

QUANTIZED_KEYS = tiles.CONSTANTS["QUANTIZED_KEYS"]


@triton.jit
def _bounds_kernel(
    q_ptr: tl.tensor,
    log_z_ptr: tl.tensor,
    key_codes_ptr: tl.tensor,
    key_steps_ptr: tl.tensor,
    key_errors_ptr: tl.tensor,
    key_origin_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    keys: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    o_r = tl.arange(0, ROWS)
    o_d = tl.arange(0, head_dim)
    q = tl.load(q_ptr + o_r[None, :] * head_dim + o_d[:, None])
    error = largest_error(key_errors_ptr, tl.cdiv(keys, BLOCK_K), 4)
    codes, step, margin, offset = quantized_queries(q, key_origin_ptr, error, tl.load(log_z_ptr + o_r), scale, head_dim)
    for start in range(0, keys, BLOCK_K):
        index = start + tl.arange(0, BLOCK_K)
        key = tl.load(key_codes_ptr + index[:, None] * head_dim + o_d[None, :], mask=(index < keys)[:, None], other=0)
        key_step = tl.load(key_steps_ptr + index, mask=index < keys, other=0.0)
        bound = bounded_exponents(key, key_step, codes, step, margin, offset)
        tl.store(bound_ptr + index[:, None] * ROWS + o_r[None, :], bound, mask=(index < keys)[:, None])


def bounds(q: Tensor, k1: Tensor, log_z: Tensor, scale: float) -> Tensor:
    """What is at least scale * log2(e) * k1 q^T - log_z, fp32 [N, R], from `q` [R, D], `k1` [N, D] and `log_z` [R]."""
    keys, dim = k1.shape
    tokens = keys + 1
    sizes = SparseSizes(
        num_heads=1,
        num_kv_heads=1,
        head_dim=dim,
        scale=scale,
        kernel_size=2,
        kernel_stride=1,
        block_size=2,
        topk=3,
        window_size=2,
        init_blocks=0,
        dense_len=-1,
    )
    caches = [torch.zeros(1, 1, rows, dim, dtype=k1.dtype) for rows in (tokens, tokens, keys, (tokens - 8) // 4 + 1)]
    caches[2][0, 0] = k1
    lengths = [torch.tensor([n], dtype=torch.int32) for n in (tokens - 2, tokens)]
    inputs = [torch.zeros(1, 2, 4 * dim, dtype=k1.dtype), *lengths, *caches]
    call = bind_kernels(CONTRACT, bounding_kernels({}), inputs, asdict(sizes), allocate=poisoned)
    next(x for x in call.launches if x.launch.name == "infllmv2_quantize_keys_kernel").run()
    bound = poisoned((keys, len(q)), dtype=torch.float32, device=q.device)
    codes = [call.buffers[f"key_{name}"] for name in ("codes", "steps", "errors", "origin")]
    with gpu_arithmetic():
        _bounds_kernel[(1,)](q, log_z, *codes, bound, keys, scale, dim, len(q), QUANTIZED_KEYS)
    return bound
