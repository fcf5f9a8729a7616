"""Quantised projections in the graph that an engine is built from.

A product becomes `DQ(Q(x)) @ Transpose(DQ(w))`, which TensorRT fuses into one product of the quantised type. What a
pack holds in 16 bits, the gates of the mixers as a rule, stays a product of its own, and both are concatenated.
docs/quantisation.md has the forms and what TensorRT makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnxscript import optimizer

from ..checkpoint.reader import Checkpoint
from ..specs import Precision
from .product_builder import ProductBuilder
from .projections import projections
from .quantized_runs import PlacedRun, Run, Span, place_runs
from .trace import checkpoint_name

QUANTIZED_OPSET = 23
"""The first with float4, and with scales of another type than what they scale."""
TENSORRT_DOMAIN = "trt"

STORED_TYPES = {
    Precision.FP8: ir.DataType.FLOAT8E4M3FN,
    Precision.INT8: ir.DataType.INT8,
    Precision.INT4: ir.DataType.INT4,
    Precision.NVFP4: ir.DataType.FLOAT4E2M1,
}
"""ONNX type of quantised numbers."""
_GROUP_SCALES = {Precision.INT4: ir.DataType.BFLOAT16, Precision.NVFP4: ir.DataType.FLOAT8E4M3FN}


def quantize_projections(model: ir.Model, checkpoint: Checkpoint, directory: Path, placed: Mapping[Path, str]) -> None:
    """Give every projection of `checkpoint.quantized` its quantised form; other weights stay without a value.

    Args: `placed`, the checkpoint's files, which lie in `directory`, by path.
    Raises: DiskFullError if weights must be written once more and do not fit the disk.
    """
    builders = [ProductBuilder(model.graph, projection, checkpoint) for projection in projections(model.graph)]
    builders = [builder for builder in builders if builder.runs]
    runs = place_runs([run for builder in builders for run in builder.runs], directory, placed)
    by_name = {each.run.name: each for each in runs}
    for builder in builders:
        projection, products, kept = builder.projection, [], []
        for piece in builder.pieces:
            builder.enter(piece)
            if isinstance(piece, Run):
                x, weight = _input(builder, piece), _weight(builder, by_name[piece.name], directory)
            else:
                # Of what a pack does not quantise there is only the gate.
                (weight,) = (value for value in projection.weights if checkpoint_name(value) in piece)
                kept.append(weight)
                x = projection.x
            # Behind the dequantisation: the other way round an engine with a one-token profile stores weights twice.
            products.append(builder.node("MatMul", [x, builder.node("Transpose", [weight], {"perm": [1, 0]})]))
        projection.replace(builder.join(products), model.graph, kept)
    optimizer.remove_unused_nodes(model)
    model.opset_imports[""] = QUANTIZED_OPSET
    if checkpoint.precision is Precision.NVFP4:
        model.opset_imports[TENSORRT_DOMAIN] = 1


def _input(builder: ProductBuilder, run: Run) -> ir.Value:
    """The input as the product sees it: quantised and back."""
    x, scale = builder.projection.x, run.weights[0].input_scale
    if scale is None:
        return x
    stored, widened = STORED_TYPES[run.precision], {"output_dtype": int(builder.dtype)}
    factor = builder.constant("input_scale", scale)
    if run.precision is Precision.NVFP4:
        codes, scales = builder.nodes(
            "TRT_FP4DynamicQuantize",
            [x, factor],
            {"axis": -1, "block_size": 16, "scale_type": int(ir.DataType.FLOAT8E4M3FN)},
            [stored, ir.DataType.FLOAT8E4M3FN],
            TENSORRT_DOMAIN,
        )
        scales = builder.node("DequantizeLinear", [scales, factor], widened)
        return builder.node("DequantizeLinear", [codes, scales], {"axis": -1, "block_size": 16})
    (codes,) = builder.nodes("QuantizeLinear", [x, factor], {"output_dtype": int(stored)}, [stored])
    return builder.node("DequantizeLinear", [codes, factor], widened)


def _weight(builder: ProductBuilder, placed: PlacedRun, directory: Path) -> ir.Value:
    """The weight [out, in] in the type of the activations."""

    def external(name: str, where: Span, dtype: ir.DataType, shape: tuple[int, int]) -> ir.Value:
        tensor = ir.ExternalTensor(
            where.file, where.offset, where.length, dtype, shape=ir.Shape(shape), name=name, base_dir=directory
        )
        return builder.initializer(name, tensor, shape)

    run, widened = placed.run, {"output_dtype": int(builder.dtype)}
    codes = external(run.name, placed.data, STORED_TYPES[run.precision], run.shape)
    if placed.scale is None:
        scales = run.flat_scales()
        axis = {"axis": 0} if scales.ndim else {}
        return builder.node("DequantizeLinear", [codes, builder.constant("weight_scale", scales)], {**axis, **widened})
    scale = external(run.scale_name, placed.scale, _GROUP_SCALES[run.precision], run.scale_shape)
    if run.precision is Precision.NVFP4:
        factor = builder.constant("weight_global_scale", run.weights[0].global_scale)
        scale = builder.node("DequantizeLinear", [scale, factor], widened)
    return builder.node(
        "DequantizeLinear", [codes, scale], {"axis": 1, "block_size": run.shape[1] // run.scale_shape[1]}
    )
