"""Calls taken apart or run again, and kernels with faults that checks must find; run where Triton interprets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from sala_export.ops.common.triton_interpreter import gpu_arithmetic
from sala_export.ops.common.triton_run import INTERPRETED_SM, bind_kernels
from sala_export.ops.infllmv2_attention.schema import CONTRACT
from sala_export.ops.infllmv2_attention.tiles import UNION_TOKENS
from sala_export.ops.infllmv2_attention.triton_kernel import KERNELS
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import CONTRACTS

from .triton_interpreter import poisoned

FAR_TOKENS = (1 << 24) + 4096
"""Of 128 channels: more than 2^31 values, which an int32 does not count."""
FAR_SIZES: dict[str, int | float] = {
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 128,
    "scale": 128**-0.5,
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "topk": 3,
    "window_size": 64,
    "init_blocks": 1,
    "dense_len": -1,
}


def attend_far_into_a_cache(tokens: int, chosen: int) -> tuple[Tensor, Tensor]:
    """Outputs of the last `tokens` of two caches of FAR_TOKENS, with one chosen block given, and what they should be.

    Everything but the selection is run, which would read all of the caches; with an odd number of tokens that takes
    both gather kernels. Of the 8 GiB of the caches only what is written here and there is ever in memory.
    """
    generator = torch.Generator().manual_seed(0)
    k_cache, v_cache = (torch.empty(1, 1, FAR_TOKENS, 128, dtype=torch.float16) for _ in range(2))
    compressed = [torch.empty(1, 1, (FAR_TOKENS - 32 * f) // (16 * f) + 1, 128, dtype=torch.float16) for f in (1, 4)]
    past, own = FAR_TOKENS - tokens, FAR_TOKENS // 64 - 1
    taken = torch.cat([torch.arange(64 * b, 64 * b + 64) for b in (0, chosen, own - 1, own)])
    for cache in (k_cache, v_cache):
        cache[:, :, taken] = torch.randn(1, 1, len(taken), 128, generator=generator).half()
    qkvg = torch.randn(1, tokens, 4 * 128, generator=generator).half()
    lengths = [torch.tensor([n], dtype=torch.int32) for n in (past, FAR_TOKENS)]
    call = bind_kernels(CONTRACT, KERNELS, [qkvg, *lengths, k_cache, v_cache, *compressed], FAR_SIZES)
    union_tokens = UNION_TOKENS[INTERPRETED_SM]
    call.buffers["chosen"].fill_(chosen)
    call.buffers["union_blocks"].fill_(chosen << union_tokens | (1 << union_tokens) - 1)
    call.buffers["union_size"].fill_(1)
    call.buffers["decode_scores"].fill_(0.25)
    # The first candidate is block 1.
    call.buffers["decode_scores"].flatten()[chosen - 1] = 0.5
    for launch in call.launches:
        if "normalise" in launch.launch.name:  # Append alone, as in a dense context.
            launch = replace(launch, arguments={**launch.arguments, "dense_len": 2**31 - 1})
        if not any(part in launch.launch.name for part in ("select", "score")):
            launch.run()

    q, new_k, new_v, gate = (x.double().transpose(0, 1) for x in qkvg[0].view(tokens, 4, 1, 128).unbind(1))
    keys, values = (cache[0, :, taken].double() for cache in (k_cache, v_cache))
    keys[:, -tokens:], values[:, -tokens:] = new_k, new_v
    hidden = taken[None, :] > torch.arange(past, FAR_TOKENS)[:, None]
    logits = (q @ keys.transpose(1, 2) * 128**-0.5).masked_fill(hidden, float("-inf"))
    y = (logits.softmax(-1) @ values) * gate.sigmoid()
    return call.buffers["y"][0], y.transpose(0, 1).reshape(tokens, -1)


def run_again(
    operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float], times: int
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Outputs and counters by name after each of several runs of one call, from equal inputs, in the same buffers.

    Outputs and workspaces are poisoned before the first run.
    """
    contract, kernel_set = next(c for c in CONTRACTS if c.name == operator), KERNEL_SETS[operator]
    own = [x.clone() for x in inputs]
    call = bind_kernels(contract, kernel_set, own, attributes, allocate=poisoned)
    counters = {
        counter.name: launch.arguments[f"{counter.name}_ptr"]
        for counter in kernel_set.counters
        for launch in call.launches
        if f"{counter.name}_ptr" in launch.arguments
    }
    results = []
    for _ in range(times):
        for x, value in zip(own, inputs, strict=True):
            x.copy_(value)
        call.run()
        outputs = {output.name: call.buffers[output.name].clone() for output in contract.outputs}
        results.append((outputs, {name: counter.clone() for name, counter in counters.items()}))
    return results


@triton.jit
def returning_early_kernel(x_ptr: tl.tensor, y_ptr: tl.tensor) -> None:
    """Triton compiles what follows an early return, whatever the type: bits of 16 and 32 do not cast."""
    o = tl.arange(0, 128)
    tl.store(y_ptr + o, _bits(tl.load(x_ptr + o)))


@triton.jit
def _bits(x: tl.tensor) -> tl.tensor:
    if x.dtype == tl.float32:
        return x.to(tl.int32, bitcast=True)
    return x.to(tl.int16, bitcast=True).to(tl.int32)


@triton.jit
def racing_norm_kernel(hidden_ptr: tl.tensor, delta_ptr: tl.tensor, BLOCK: tl.constexpr) -> None:
    """A row is changed in place; with fewer elements than threads some threads load what others have stored."""
    o = tl.arange(0, BLOCK)
    hidden = tl.load(hidden_ptr + o) + tl.load(delta_ptr + o)
    tl.store(hidden_ptr + o, hidden)
    tl.store(delta_ptr + o, hidden * tl.rsqrt(tl.sum(hidden * hidden, axis=0)))


@triton.jit
def deep_pipeline_kernel(qkvz_ptr: tl.tensor, y_ptr: tl.tensor, T: tl.tensor, BLOCK: tl.constexpr) -> None:
    """More stages than the shared memory of a small GPU holds."""
    o = tl.arange(0, BLOCK)
    tile = o[:, None] * BLOCK + o[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(T):
        start = qkvz_ptr + i * BLOCK * BLOCK
        total = tl.dot(tl.load(start + tile), tl.load(start + BLOCK + tile), total)
    tl.store(y_ptr + tile, total.to(tl.bfloat16))


def elementwise(hidden: Tensor, delta: Tensor, weight: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the torch runtime's own kernels make of rows: `hidden + delta / 4`, its norm, and gated products."""
    from sala_export.torch_runtime.elementwise_kernels import (
        add_norm_kernel,
        gate_options,
        gated_product_kernel,
        norm_options,
    )

    # Between processes torch shares the memory of tensors.
    hidden, delta, gate_up = hidden.clone(), delta.clone(), gate_up.clone()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    add_norm_kernel[(rows,)](hidden, delta, weight, 0.25, 1e-6, ADDS=True, **norm_options(hidden.shape[1]))
    options = gate_options(width)
    gated_product_kernel[(rows, triton.cdiv(width, options["BLOCK_I"]))](gate_up, 1.0, **options)
    return hidden, delta, gate_up[:, :width]


def cast_in_kernel(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a kernel makes of `values`, as many as a power of two, where it casts them to `dtype`."""
    cast = torch.empty(values.shape, dtype=dtype)
    with gpu_arithmetic():
        _cast_kernel[(1,)](values, cast, len(values))
    return cast


@triton.jit
def _cast_kernel(x_ptr: tl.tensor, cast_ptr: tl.tensor, COUNT: tl.constexpr) -> None:
    o = tl.arange(0, COUNT)
    tl.store(cast_ptr + o, tl.load(x_ptr + o).to(cast_ptr.dtype.element_ty))
