"""k1 keys and queries in int8, with what the products of the two can be off: the bound of README.md.

A call that scores a long context makes the codes of its keys first, in scratch memory: one launch that reads k1 once.
Queries get theirs where they are multiplied, in select_kernel.py.

G key heads, D head dim, R rows of queries.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .positions import clamped_past, complete_windows, log2_scale

LARGEST_NORM = tl.constexpr(450.0)
"""Most that the norm of a key is in its own steps. Gaussian keys of 128 channels then just fit in 127 steps."""
CODE_ZERO = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 near it is a whole number, and its bits are those of `CODE_ZERO_BITS` plus the difference."""
CODE_ZERO_BITS = tl.constexpr(0x4B400000)
_LARGEST_CODE = tl.constexpr(127.0)
_SAMPLE_KEYS = tl.constexpr(64)
_FLATTEST = tl.constexpr(0.015625)
"""Least variance of a channel that counts, as a share of the mean of all."""
_ROUNDING = tl.constexpr(2e-5)
"""More than all roundings of one logit come to, here and where it is scored exactly, as a share of the sum of the
magnitudes of its products: a tensor core that cuts off sums of 128 channels comes to 1.9e-5. And more than exp2 and the
sum over heads are off by."""
_STEPS = tl.constexpr(4.0)
"""More steps than the roundings of a product near `CODE_ZERO` come to."""
_LARGEST = tl.constexpr(1125899906842624.0)
"""2^50. Where keys and queries are below it nothing overflows, and nothing that underflows counts."""
_LARGEST_SUM = tl.constexpr(1.2676506002282294e30)
"""2^100."""


@triton.jit
def _codes(x: tl.tensor, step: tl.tensor, AXIS: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Vectors along AXIS of `x` [N, D] or [D, N] in whole steps [N], int8.

    Returns: also the norms of these codes [N], and of what they are off, in steps [N].
    """
    scaled = x * tl.expand_dims(tl.where(step > 0, 1.0 / step, 0.0), AXIS)
    near = scaled + CODE_ZERO
    code = near - CODE_ZERO
    error = scaled - code
    codes = (near.to(tl.int32, bitcast=True) - CODE_ZERO_BITS).to(tl.int8)
    return codes, tl.sqrt(tl.sum(code * code, axis=AXIS)), tl.sqrt(tl.sum(error * error, axis=AXIS))


@triton.jit
def _origin(k1_ptr: tl.tensor, count: tl.tensor, head_dim: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Mean and scale [D] of the channels of a sample of the first `count` keys. Any scales > 0 would do.

    A key is (k1 - mean) / scale where it is coded. The scale takes three quarters of a channel's spread from the keys
    to the queries, which leaves the fewest survivors where some channels are far wider than others.
    """
    o_s = tl.arange(0, _SAMPLE_KEYS)
    index = o_s * tl.maximum(count // _SAMPLE_KEYS, 1)
    m_s = (index < count)[:, None]
    sample_ptr = k1_ptr + index[:, None].to(tl.int64) * head_dim + tl.arange(0, head_dim)[None, :]
    sample = tl.load(sample_ptr, mask=m_s, other=0.0).to(tl.float32)
    sample = tl.where(tl.abs(sample) < _LARGEST, sample, 0.0)
    size = tl.minimum(count, _SAMPLE_KEYS)
    mean = tl.sum(sample, axis=0) / size
    off = tl.where(m_s, sample - mean[None, :], 0.0)
    variance = tl.sum(off * off, axis=0) / size
    variance = tl.maximum(variance, tl.sum(variance, axis=0) / head_dim * _FLATTEST)
    root = tl.sqrt(tl.sqrt(variance))
    return mean, tl.where(variance > 0, root * tl.sqrt(root), 1.0)


@any_size_kernel
def infllmv2_quantize_keys_kernel(
    past_length_ptr: tl.tensor,
    context_length_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    key_codes_ptr: tl.tensor,
    key_steps_ptr: tl.tensor,
    key_errors_ptr: tl.tensor,
    key_origin_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    C1: tl.tensor,
    num_kv_heads: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.constexpr,
    block_size: tl.constexpr,
    window_size: tl.tensor,
    init_blocks: tl.tensor,
    dense_len: tl.tensor,
    head_dim: tl.constexpr,
    BOUNDED_BLOCKS: tl.constexpr,
    CODED_KEYS: tl.constexpr,
    QUANTIZED_KEYS: tl.constexpr,
) -> None:
    """Codes, steps and the largest error of QUANTIZED_KEYS keys, if any tile asks; grid (keys / QUANTIZED_KEYS, G, B).

    A step is NaN for a key that is not finite or huge, and what is bounded with it is as large as can be.
    """
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    head = batch * num_kv_heads + group
    last = clamped_past(past_length_ptr, batch, T, C) + T - 1
    count = complete_windows(last + 1, kernel_size, kernel_stride)
    first = tl.program_id(0) * QUANTIZED_KEYS
    candidates = last // block_size - window_size // block_size - init_blocks
    is_sparse = tl.load(context_length_ptr + batch) >= dense_len
    rows = tl.cdiv(C, kernel_stride)
    if is_sparse & (candidates >= BOUNDED_BLOCKS) & (rows <= CODED_KEYS) & (first < count):
        o_d = tl.arange(0, head_dim)
        k1_ptr = k1_cache_ptr + head * C1 * head_dim
        mean, scale = _origin(k1_ptr, count, head_dim)
        index = first + tl.arange(0, QUANTIZED_KEYS)
        m_k = index < count
        to_key = index[:, None].to(tl.int64) * head_dim + o_d[None, :]
        key = (tl.load(k1_ptr + to_key, mask=m_k[:, None], other=0.0).to(tl.float32) - mean[None, :]) / scale[None, :]
        norm = tl.sqrt(tl.sum(key * key, axis=1))
        is_finite = m_k & (norm < _LARGEST)
        step = tl.maximum(norm / LARGEST_NORM, tl.max(tl.abs(key), axis=1) / _LARGEST_CODE)
        codes, _, error = _codes(tl.where(is_finite[:, None], key, 0.0), step, 1)
        tl.store(key_codes_ptr + head * rows * head_dim + to_key, codes, mask=m_k[:, None])
        tl.store(key_steps_ptr + head * rows + index, tl.where(is_finite, step, float("nan")), mask=m_k)
        parts = tl.cdiv(rows, QUANTIZED_KEYS)
        largest = tl.max(tl.where(is_finite, error, 0.0), axis=0)
        tl.store(key_errors_ptr + head * parts + tl.program_id(0), largest)
        if first == 0:
            origin_ptr = key_origin_ptr + head * 2 * head_dim + o_d
            tl.store(origin_ptr, mean)
            tl.store(origin_ptr + head_dim, scale)


@triton.jit
def largest_error(key_errors_ptr: tl.tensor, parts: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """The largest of `parts` errors of keys, in steps."""
    o_p = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        found = tl.maximum(found, tl.load(key_errors_ptr + start + o_p, mask=start + o_p < parts, other=0.0))
    return tl.max(found, axis=0)


@triton.jit
def quantized_queries(
    q: tl.tensor,
    key_origin_ptr: tl.tensor,
    key_error: tl.tensor,
    log_z: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Codes [D, R] of queries, and their step, margin and offset [R] of `bounded_exponents`.

    Args: `q` [D, R]; `key_error`, the most that keys are off, in their steps; `log_z` [R], +inf for what has no weight.
    """
    o_d = tl.arange(0, head_dim)
    scaled = q.to(tl.float32) * log2_scale(scale)
    of_mean = scaled * tl.load(key_origin_ptr + o_d)[:, None]
    magnitude = tl.sum(tl.abs(of_mean), axis=0)
    constant = tl.sum(of_mean, axis=0) - log_z
    constant += _ROUNDING * (1 + magnitude) + 1e-6 * tl.abs(constant)
    offset = tl.where(magnitude < _LARGEST_SUM, constant, float("nan"))
    offset = tl.where(log_z == float("inf"), float("-inf"), offset)
    scaled *= tl.load(key_origin_ptr + head_dim + o_d)[:, None]
    largest = tl.max(tl.abs(scaled), axis=0)
    step = tl.where(largest < _LARGEST, largest / _LARGEST_CODE, float("nan"))
    codes, norm, error = _codes(scaled, step, 0)
    off = error * LARGEST_NORM + norm * key_error + _ROUNDING * LARGEST_NORM * (norm + error) + _STEPS
    return codes, step, step * (off - CODE_ZERO), offset


@triton.jit
def bounded_exponents(
    key_codes: tl.tensor,
    key_steps: tl.tensor,
    codes: tl.tensor,
    step: tl.tensor,
    margin: tl.tensor,
    offset: tl.tensor,
) -> tl.tensor:
    """Upper bounds [N, R] of log2 P: logits in units of log2, less log_z. NaN is as large as can be.

    Products are summed up from CODE_ZERO on, which spares a conversion: `margin` takes it off again.

    Args: `key_codes` [N, D] and `key_steps` [N] of keys; the rest as `quantized_queries` gives it.
    """
    zero = tl.full((key_codes.shape[0], codes.shape[1]), CODE_ZERO_BITS, tl.int32)
    product = tl.dot(key_codes, codes, acc=zero, out_dtype=tl.int32).to(tl.float32, bitcast=True)
    return key_steps[:, None] * (product * step[None, :] + margin[None, :]) + offset[None, :]
