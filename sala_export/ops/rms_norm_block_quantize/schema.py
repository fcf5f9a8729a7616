"""Contract of `sala::RMSNormBlockQuantize`. The equations are in README.md beside this file."""

from __future__ import annotations

from ..common.block_scales import SCALES_DOC, block_rules
from ..common.contract import ACTIVATION, Attribute, Contract, Tensor

CONTRACT = Contract(
    name="rms_norm_block_quantize",
    onnx_type="RMSNormBlockQuantize",
    doc="RMSNorm of rows, to MXFP8: e4m3 codes and a power of two for each 32 neighbours of a row.",
    dims={"B": "batch", "T": "tokens of this chunk, at least 1"},
    inputs=(
        Tensor(name="x", dtype=ACTIVATION, shape=("B", "T", "columns"), doc="The residual stream."),
        Tensor(name="weight", dtype=ACTIVATION, shape=("columns",), doc="RMSNorm weight."),
    ),
    outputs=(
        Tensor(
            name="codes", dtype="float8_e4m3fn", shape=("B", "T", "columns"), doc="The normed rows over their scales."
        ),
        Tensor(name="scales", dtype="int32", shape=("fdiv(columns, 128)", "B", "T"), doc=SCALES_DOC),
    ),
    attributes=(
        Attribute(name="columns", type=int, doc="Numbers of a row, a multiple of 128."),
        Attribute(name="eps", type=float, doc="Added to the mean square."),
    ),
    rules=block_rules("columns"),
)
