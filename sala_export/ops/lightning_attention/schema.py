"""Contract of `sala::LightningAttention`. The equations are in README.md beside this file."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.contract import ACTIVATION, Attribute, Contract, Rule, Tensor

CONTRACT = Contract(
    name="lightning_attention",
    onnx_type="LightningAttention",
    doc=(
        "Linear attention with one constant decay per head, from packed projection to the input of o_proj: QK norm, "
        "RoPE, recurrence with an fp32 state, output norm over all channels, sigmoid gate."
    ),
    dims={
        "B": "batch",
        "T": "tokens of this chunk, at least 1; every token of every row is real (no padding)",
    },
    inputs=(
        Tensor(
            name="qkvz",
            dtype=ACTIVATION,
            shape=("B", "T", "4 * num_heads * head_dim"),
            doc="Projections of the mixer input, concatenated in the order q, k, v, z; heads contiguous within each.",
        ),
        Tensor(name="q_norm", dtype=ACTIVATION, shape=("head_dim",), doc="RMSNorm weight of each query head."),
        Tensor(name="k_norm", dtype=ACTIVATION, shape=("head_dim",), doc="RMSNorm weight of each key head."),
        Tensor(
            name="o_norm",
            dtype=ACTIVATION,
            shape=("num_heads * head_dim",),
            doc="RMSNorm weight over all heads together.",
        ),
        Tensor(
            name="rope_cos_sin",
            dtype="float32",
            shape=("B", "T", "head_dim"),
            doc="First half cos, second half sin of position * inv_freq, for the absolute positions of this chunk.",
        ),
        Tensor(
            name="state",
            dtype="float32",
            shape=("B", "num_heads", "head_dim", "head_dim"),
            doc="Recurrent state before the chunk, [key dim, value dim]; zeros at the start of a sequence.",
        ),
    ),
    outputs=(
        Tensor(
            name="y",
            dtype=ACTIVATION,
            shape=("B", "T", "num_heads * head_dim"),
            doc="Normed and gated output, ready for o_proj.",
        ),
        Tensor(
            name="state_out",
            dtype="float32",
            shape=("B", "num_heads", "head_dim", "head_dim"),
            doc="State after the last token.",
            updates="state",
        ),
    ),
    attributes=(
        Attribute(name="num_heads", type=int, doc="Heads H, a power of two; head h decays by exp(-2^(-8(h+1)/H))."),
        Attribute(name="head_dim", type=int, doc="Channels D of a head, for keys and values alike; even."),
        Attribute(name="eps", type=float, doc="Added to the mean square in all three norms."),
        Attribute(name="scale", type=float, doc="Factor on q k^T, 1/sqrt(head_dim) in SALA."),
    ),
    rules=(
        Rule(left="num_heads", relation=">=", right="1", doc="there is at least one head"),
        Rule(
            left="is_power_of_two(num_heads)",
            relation="==",
            right="1",
            doc="the formula of the decay slopes holds for a power of two alone",
        ),
        Rule(left="head_dim", relation=">=", right="2", doc="RoPE turns at least one pair of channels"),
        Rule(left="T", relation=">=", right="1", doc="a chunk holds at least one token"),
        Rule(
            left="2 * fdiv(head_dim, 2)",
            relation="==",
            right="head_dim",
            doc="RoPE pairs channel i with channel i + head_dim / 2",
        ),
    ),
)

PUBLISHED: Mapping[str, int | float] = {"num_heads": 32, "head_dim": 128, "eps": 1e-6, "scale": 128**-0.5}
"""Attributes in the published model, for tests and benchmarks; an exported graph states its own."""
