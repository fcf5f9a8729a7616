"""The step in fp32 for ONNX Runtime on the CPU, with the weights as graph inputs.

ONNX Runtime on x86 has no bf16 product, and left to itself it folds Cast, Concat and Transpose of every weight, which
peaked at seven times the stored bytes. So the CPU graph states the packed fp32 weight of each projection as an input,
[out, in] as stored; a runtime fills it once by converting the stored parts one after the other. The embedding keeps its
stored type, since only the rows of a chunk are converted.

A quantised checkpoint gives the products the numbers that an engine gives them: weights dequantised to fp32 when they
are loaded, inputs rounded to the quantised type in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnxscript import optimizer

from ..checkpoint.keymap import EMBEDDING
from ..checkpoint.reader import Checkpoint
from ..errors import ExportError
from ..model.signature import Signature, signature
from ..specs import DType, Precision, TensorSpec
from .fake_quantization import fake_quantized
from .naming import drop_metadata, name_nodes
from .product_builder import ProductBuilder
from .projections import packed_name, projections, static_shape
from .quantized_form import QUANTIZED_OPSET
from .quantized_runs import Run
from .trace import IR_TYPES, checkpoint_name, stamp, trace

CPU_GRAPH_FILE = "cpu.onnx"
_CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuWeight:
    """A weight input of the CPU graph."""

    spec: TensorSpec
    tensors: tuple[str, ...]
    """Checkpoint tensors whose rows it holds, one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuGraph:
    """Interface of the written graph: the step's signature in fp32, then the weights."""

    step: Signature
    weights: tuple[CpuWeight, ...]


def export_cpu_graph(checkpoint: Checkpoint, directory: Path) -> CpuGraph:
    """Write `cpu.onnx`, which holds no weight, into `directory`.

    Raises: ExportError if tracing fails or the traced graph has an unknown form.
    """
    step = signature(checkpoint.config, DType.FLOAT32)
    model = trace(checkpoint.config, Precision.FP32, step)
    weights = _packed_projections(model.graph, checkpoint) + _single_weights(model.graph, checkpoint)
    optimizer.remove_unused_nodes(model)
    name_nodes(model.graph)
    drop_metadata(model)
    model.opset_imports[_CONTRIB] = 1
    if checkpoint.quantized:
        model.opset_imports[""] = QUANTIZED_OPSET
    stamp(model)
    ir.save(model, directory / CPU_GRAPH_FILE)
    by_name = {weight.spec.name: weight for weight in weights}
    unread = {*checkpoint.locations, *checkpoint.quantized} - {name for weight in weights for name in weight.tensors}
    if unread:
        raise ExportError(f"the CPU graph does not use {', '.join(sorted(unread))}")
    order = [value.name for value in model.graph.inputs if value.name in by_name]
    return CpuGraph(step=step, weights=tuple(by_name[name] for name in order if name is not None))


def _packed_projections(graph: ir.Graph, checkpoint: Checkpoint) -> list[CpuWeight]:
    """Turn every `x @ Transpose(Concat(w...))` into one FusedMatMul of x and a packed weight input.

    Quantised weights come dequantised and their x goes through the rounding that the engine gives it; what a pack
    holds in 16 bits is then a product of its own.
    """
    weights = []
    for projection in list(projections(graph)):
        builder = ProductBuilder(graph, projection, checkpoint)
        shapes = {checkpoint_name(weight): static_shape(weight) for weight in projection.weights}
        products = []
        for piece in builder.pieces:
            builder.enter(piece)
            names = piece.names if isinstance(piece, Run) else piece
            x = fake_quantized(builder, piece) if isinstance(piece, Run) else projection.x
            shape = (sum(shapes[name][0] for name in names), shapes[names[0]][1])
            packed = TensorSpec(packed_name(names), DType.FLOAT32, shape)
            products.append(builder.node("FusedMatMul", [x, _add_input(graph, packed)], {"transB": 1}, _CONTRIB))
            weights.append(CpuWeight(spec=packed, tensors=names))
        projection.replace(builder.join(products), graph)
    return weights


def _single_weights(graph: ir.Graph, checkpoint: Checkpoint) -> list[CpuWeight]:
    """Turn the remaining weights (norms, lm_head, embedding) into inputs of their own."""
    weights = []
    for value in [v for v in graph.initializers.values() if v.const_value is None]:
        assert value.name is not None
        name = checkpoint_name(value)
        location = checkpoint.locations[name]
        dtype = location.dtype if name == EMBEDDING else DType.FLOAT32
        spec = TensorSpec(name, dtype, location.shape)
        del graph.initializers[value.name]
        source = _add_input(graph, spec)
        uses = list(value.uses())
        ir.convenience.replace_all_uses_with(value, source)
        if dtype is not DType.FLOAT32:
            _cast_gathered(graph, [node for node, _ in uses], IR_TYPES[dtype])
        weights.append(CpuWeight(spec=spec, tensors=(name,)))
    return weights


def _cast_gathered(graph: ir.Graph, gathers: Iterable[ir.Node], stored: ir.DataType) -> None:
    """Convert gathered embedding rows to fp32, rather than the whole table."""
    for gather in gathers:
        if gather.op_type != "Gather":
            raise ExportError(f"{gather.op_type} reads the embedding in its stored type; only Gather was expected")
        rows = gather.outputs[0]
        cast = ir.node("Cast", [rows], {"to": int(ir.DataType.FLOAT)})
        cast.metadata_props.update(gather.metadata_props)
        output = cast.outputs[0]
        output.name, output.dtype, output.shape = f"{rows.name}.{Precision.FP32}", ir.DataType.FLOAT, rows.shape
        ir.convenience.replace_all_uses_with(rows, output)
        cast.replace_input_with(0, rows)
        rows.dtype = stored
        graph.insert_after(gather, cast)


def _add_input(graph: ir.Graph, spec: TensorSpec) -> ir.Value:
    value = ir.Value(
        name=spec.name, type=ir.TensorType(IR_TYPES[spec.dtype]), shape=ir.Shape([int(n) for n in spec.shape])
    )
    graph.inputs.append(value)
    return value
