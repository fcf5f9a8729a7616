"""What our operators are measured beside, on the same inputs: flash-linear-attention, and torch's dense attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from benchmarks.kernel_cases import LIGHTNING, Case
from benchmarks.kernel_timing import Step
from sala_export.ops.lightning_attention.reference import decay_slopes
from sala_export.specs import DType


def peer_name(case: Case) -> str:
    """The peer of a case."""
    if case.operator == LIGHTNING:
        return "fla fused_recurrent_simple_gla" if case.is_decode else "fla chunk_simple_gla"
    return "torch SDPA, dense"


def peer_bytes(case: Case, dtype: DType) -> int:
    """Device memory that the peer takes beside our inputs: its operands, its result and its intermediates."""
    row = case.batch * case.tokens * int(case.attributes["num_heads"]) * int(case.attributes["head_dim"]) * dtype.bytes
    # chunk_simple_gla writes a state of D x D for every 64 tokens: twice a row of D values at D = 128.
    return (3 + 1 + 2) * row if case.operator == LIGHTNING else (1 + 2) * row


def make_peer(case: Case, inputs: Sequence[Tensor]) -> Step:
    """One call of the peer, ready to run; its operands are made here, outside of what is measured.

    Raises: ImportError if the peer's package is not installed.
    """
    return _linear_attention(case, inputs) if case.operator == LIGHTNING else _dense_attention(case, inputs)


def linear_operands(case: Case, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, T, H, D] as the recurrence takes them: after norm and RoPE, in the type of the activations."""
    qkvz, q_norm, k_norm, _, rope, _ = inputs
    heads, dim = int(case.attributes["num_heads"]), int(case.attributes["head_dim"])
    q, k, v, _ = qkvz.view(case.batch, case.tokens, 4, heads, dim).unbind(2)
    cos, sin = (half.repeat(1, 1, 1, 2) for half in rope[:, :, None].chunk(2, dim=-1))

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        normed = torch.nn.functional.rms_norm(x.float(), (dim,), weight.float(), float(case.attributes["eps"]))
        other = torch.cat((-normed[..., dim // 2 :], normed[..., : dim // 2]), dim=-1)
        return (normed * cos + other * sin).to(x.dtype)

    return turned(q, q_norm), turned(k, k_norm), v.contiguous()


def _linear_attention(case: Case, inputs: Sequence[Tensor]) -> Step:
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    q, k, v = linear_operands(case, inputs)
    state = inputs[-1].clone()
    g_gamma = -decay_slopes(int(case.attributes["num_heads"]), device=q.device)
    function = fused_recurrent_simple_gla if case.is_decode else chunk_simple_gla

    def call() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return function(
                q,
                k,
                v,
                g_gamma=g_gamma,
                scale=float(case.attributes["scale"]),
                initial_state=state,
                output_final_state=True,
            )

    return call


def _dense_attention(case: Case, inputs: Sequence[Tensor]) -> Step:
    qkvg, _, _, keys, values = inputs[:5]
    heads, dim = int(case.attributes["num_heads"]), int(case.attributes["head_dim"])
    q = qkvg[..., : heads * dim].view(case.batch, case.tokens, heads, dim).transpose(1, 2).contiguous()
    mask = None if case.is_decode else causal_lower_right(case.tokens, case.context)
    # Only the flash kernel: another would materialise the mask.
    backends = [SDPBackend.FLASH_ATTENTION] if q.is_cuda else [SDPBackend.MATH]

    def call() -> Tensor:
        with torch.no_grad(), sdpa_kernel(backends):
            return torch.nn.functional.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, scale=float(case.attributes["scale"]), enable_gqa=True
            )

    return call
