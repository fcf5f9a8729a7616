"""A kernel around a device function of ours, and a call taken apart into its launches; run where Triton interprets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sala_export.ops.common.triton_run import bind_kernels
from sala_export.ops.infllmv2_attention.schema import CONTRACT
from sala_export.ops.infllmv2_attention.top_blocks import is_among_best
from sala_export.ops.infllmv2_attention.triton_kernel import KERNELS


@triton.jit
def _is_among_best_kernel(
    score_ptr: tl.tensor, block_ptr: tl.tensor, chosen_ptr: tl.tensor, limit: tl.tensor, N: tl.constexpr
) -> None:
    o = tl.arange(0, N)
    chosen = is_among_best(tl.load(score_ptr + o), tl.load(block_ptr + o), limit)
    tl.store(chosen_ptr + o, chosen.to(tl.int32))


def among_best(score: Tensor, block: Tensor, limit: int) -> Tensor:
    """bool [N], by the kernels' own function; N a power of two."""
    chosen = torch.full(score.shape, -1, dtype=torch.int32)
    _is_among_best_kernel[(1,)](score, block, chosen, limit, len(score))
    return chosen.bool()


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

    Everything but the selection is run, which would read all of the caches; of their 8 GiB only what is written here
    and there is ever in memory.
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
    call.buffers["chosen"].fill_(chosen)
    for launch in call.launches:
        if not any(part in launch.launch.name for part in ("select", "normalise", "score", "choose")):
            launch.run()

    q, new_k, new_v, gate = (x.double().transpose(0, 1) for x in qkvg[0].view(tokens, 4, 1, 128).unbind(1))
    keys, values = (cache[0, :, taken].double() for cache in (k_cache, v_cache))
    keys[:, -tokens:], values[:, -tokens:] = new_k, new_v
    hidden = taken[None, :] > torch.arange(past, FAR_TOKENS)[:, None]
    logits = (q @ keys.transpose(1, 2) * 128**-0.5).masked_fill(hidden, float("-inf"))
    y = (logits.softmax(-1) @ values) * gate.sigmoid()
    return call.buffers["y"][0], y.transpose(0, 1).reshape(tokens, -1)
