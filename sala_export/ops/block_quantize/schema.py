"""Contract of `sala::BlockQuantize`. The equations are in README.md beside this file."""

from __future__ import annotations

from ..common.block_scales import SCALES_DOC, block_rules
from ..common.contract import ACTIVATION, Attribute, Contract, Rule, Tensor

CONTRACT = Contract(
    name="block_quantize",
    onnx_type="BlockQuantize",
    doc=(
        "Rows to MXFP8: e4m3 codes and a power of two for each 32 neighbours of a row. With `gated` the rows are "
        "`silu(gate) * up` of a packed projection."
    ),
    dims={"B": "batch", "T": "tokens of this chunk, at least 1"},
    inputs=(
        Tensor(
            name="x",
            dtype=ACTIVATION,
            shape=("B", "T", "columns * (1 + gated)"),
            doc="What is quantised; with `gated` the projections gate and up, one after the other.",
        ),
    ),
    outputs=(
        Tensor(name="codes", dtype="float8_e4m3fn", shape=("B", "T", "columns"), doc="The rows over their scales."),
        Tensor(name="scales", dtype="int32", shape=("fdiv(columns, 128)", "B", "T"), doc=SCALES_DOC),
    ),
    attributes=(
        Attribute(name="columns", type=int, doc="Numbers of a row of codes, a multiple of 128."),
        Attribute(name="gated", type=int, doc="1 to quantise `silu(gate) * up`, 0 to quantise `x` itself."),
    ),
    rules=(
        *block_rules("columns"),
        Rule(left="gated", relation=">=", right="0", doc="gated is 0 or 1"),
        Rule(left="gated", relation="<=", right="1", doc="gated is 0 or 1"),
    ),
)
