"""Contract of `sala::BlockScaledLinearAdd`. The equations are in README.md beside this file."""

from __future__ import annotations

from ..block_scaled_linear.schema import DIMS, OPERANDS, RULES
from ..common.contract import ACTIVATION, Attribute, Contract, Tensor

CONTRACT = Contract(
    name="block_scaled_linear_add",
    onnx_type="BlockScaledLinearAdd",
    doc="A product of MXFP8 operands, scaled and added to the residual stream in fp32.",
    dims=DIMS,
    inputs=(
        *OPERANDS,
        Tensor(name="stream", dtype=ACTIVATION, shape=("B", "T", "N"), doc="What the product is added to."),
    ),
    outputs=(
        Tensor(name="y", dtype=ACTIVATION, shape=("B", "T", "N"), doc="`stream` plus `factor` times the product."),
    ),
    attributes=(Attribute(name="factor", type=float, doc="Multiplies the product before it is added."),),
    rules=RULES,
)
