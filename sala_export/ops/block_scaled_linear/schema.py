"""Contract of `sala::BlockScaledLinear`. The equations are in README.md beside this file."""

from __future__ import annotations

from ..common.block_scales import SCALES_DOC, block_rules
from ..common.contract import ACTIVATION, Contract, Rule, Tensor

DIMS = {
    "B": "batch",
    "T": "tokens of this chunk, at least 1",
    "K": "inputs, a multiple of 128",
    "N": "outputs, a multiple of 8",
}
OPERANDS = (
    Tensor(name="x", dtype="float8_e4m3fn", shape=("B", "T", "K"), doc="Codes of the input."),
    Tensor(name="x_scales", dtype="int32", shape=("fdiv(K, 128)", "B", "T"), doc=SCALES_DOC),
    Tensor(name="weight", dtype="float8_e4m3fn", shape=("N", "K"), doc="Codes of the weight."),
    Tensor(name="weight_scales", dtype="int32", shape=("fdiv(K, 128)", "N"), doc=SCALES_DOC),
)
RULES = (
    *block_rules("K"),
    Rule(left="N", relation=">=", right="8", doc="there is at least one piece of eight outputs"),
    Rule(left="8 * fdiv(N, 8)", relation="==", right="N", doc="a kernel stores eight outputs at once"),
)

CONTRACT = Contract(
    name="block_scaled_linear",
    onnx_type="BlockScaledLinear",
    doc=(
        "A product of MXFP8 operands, sums in fp32. No input has the type of the activations: `y` is bfloat16 on a GPU "
        "and float32 on a CPU."
    ),
    dims=DIMS,
    inputs=OPERANDS,
    outputs=(Tensor(name="y", dtype=ACTIVATION, shape=("B", "T", "N"), doc="The product."),),
    attributes=(),
    rules=RULES,
)
