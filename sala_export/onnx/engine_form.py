"""The graph that TensorRT builds an engine from: weights are its inputs, so that the engine is code alone.

A product takes the packed weights of its projections as one input, [out, in] as the checkpoint stores them, and its
input as rows [B*T, in]: before a product of [B, T, in] TensorRT turns the weight over in every step. Scales of fp8 and
int8 are inputs outside of the product, whose own are 1. Products of mxfp8 are operators of this project, and so are
norms and sums around them. docs/quantisation.md has the forms, and what TensorRT makes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..bundle.manifest import WeightInput, WeightLayout, WeightPart
from ..checkpoint.keymap import EMBEDDING, FINAL_NORM, packed_name
from ..checkpoint.quantization import SCHEMES
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.reader import Checkpoint
from ..model.signature import Signature, signature
from ..numerics.number_formats import WORD_COLUMNS
from ..specs import DType, Precision, TensorSpec
from . import block_scaled
from .block_scaled import ScaledRows
from .engine_constants import Arrays, EngineConstants, int4_columns, scale_columns
from .fake_quantization import token_scales
from .graph_builder import FLAT_ROWS, IR_TYPES, OPSET, QUANTIZED_OPSET, GraphBuilder, shape_of
from .layer_parts import gated, norm_module, rms_norm
from .nvfp4 import NVFP4_BLOCK, nvfp4_input
from .products import Names, add_scaled, layer_module, product_module, scales_of, split_product
from .step_graph import Norm, build_step

logger = logging.getLogger(__name__)

ENGINE_GRAPH_FILE = "engine.onnx"
_INT4_GROUP = SCHEMES[Precision.INT4].group or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenEngineGraph:
    """Description of `engine.onnx`: its inputs, outputs and constants."""

    step: Signature
    weights: tuple[WeightInput, ...]
    """The graph's inputs behind those of the step, in their order."""
    constants: tuple[str, ...]
    """Tensors of the checkpoint whose numbers are constants of the graph, and so of the engine."""
    build_files: tuple[Path, ...]
    """Files beside the graph that only the build of the engine reads: its plan holds their numbers."""

    def remove_constants(self, graph: Path) -> None:
        """Remove `build_files`, and make what the graph of this path reads from them inputs of it.

        So ONNX tools open the graph of a bundle, which then shows constants by name, type and shape.
        """
        if not self.build_files:
            return
        model = ir.load(graph)
        for name, value in list(model.graph.initializers.items()):
            if isinstance(value.const_value, ir.ExternalTensor):
                del model.graph.initializers[name]
                value.const_value = None
                model.graph.inputs.append(value)
        ir.save(model, graph)
        for file in self.build_files:
            file.unlink(missing_ok=True)


def export_engine_graph(checkpoint: Checkpoint, directory: Path, precision: Precision) -> WrittenEngineGraph:
    """Write `engine.onnx` into `directory`, and beside it the constants that it holds.

    Raises: RequestError if `precision` is not that of a quantised checkpoint; DiskFullError if constants do not fit
    the disk.
    """
    checkpoint.require_precision(precision)
    _say_rounded_scales(checkpoint)
    form = EngineForm(checkpoint, precision, directory)
    ir.save(build_step(checkpoint.config, form), directory / ENGINE_GRAPH_FILE)
    return WrittenEngineGraph(
        step=signature(checkpoint.config, precision.dtype),
        weights=tuple(form.weights.values()),
        constants=tuple(form.fixed),
        build_files=form.constants.write(),
    )


def _say_rounded_scales(checkpoint: Checkpoint) -> None:
    """int4 scales of more than 16 bits, or of fp16: an engine has the sixteen of bf16."""
    types = {weight.scale.dtype for weight in checkpoint.quantized.values() if weight.precision is Precision.INT4}
    for dtype in sorted(types - {DType.BFLOAT16}):
        logger.warning("%s has scales in %s: the engine rounds them to bfloat16", checkpoint.directory, dtype)


class EngineForm:
    """See `step_graph.Form`."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, folder: Path) -> None:
        """Args: `folder`, where the graph will be."""
        self.graph = GraphBuilder(QUANTIZED_OPSET if checkpoint.quantized else OPSET)
        self.dtype = precision.dtype
        self.weights: dict[str, WeightInput] = {}
        """By name, in the order of the graph's inputs."""
        self.constants = EngineConstants(folder)
        self.fixed: list[str] = []
        """Tensors of the checkpoint that are constants."""
        self._checkpoint = checkpoint
        self._inputs: dict[str, ir.Value] = {}
        self._row_count: ir.Value | None = None

    @property
    def cache_dtype(self) -> DType:
        return self.dtype

    def embedding(self) -> ir.Value:
        return self._plain((EMBEDDING,))

    def norm(self, x: ir.Value, norm: Norm) -> ir.Value:
        """The weight is [1, 1, H], before lm_head [1, H]: without these extents TensorRT adds a kernel to each norm."""
        weight = self._plain((norm.weight,), leading=1 if norm.weight == FINAL_NORM else 2)
        return rms_norm(self.graph, x, weight, norm, self.dtype)

    def operator_weight(self, name: str) -> ir.Value:
        return self._plain((name,))

    def product(self, x: ir.Value, names: Names) -> ir.Value:
        kind = scales_of(self._checkpoint.quantized)
        return split_product(self.graph, names, kind, lambda part: self._product(x, part))

    def normed_product(self, stream: ir.Value, norm: Norm, names: Names) -> ir.Value:
        if not self._are_block_scaled(names):
            return self.product(self.norm(stream, norm), names)
        with self.graph.module(norm_module(norm.weight)):
            weight = self._plain((norm.weight,))
            rows = block_scaled.normed_quantized(self.graph, stream, weight, norm.eps)
        return self._block_scaled_product(rows, names)

    def mlp(self, stream: ir.Value, norm: Norm, names: Names, down: str, scale: float) -> ir.Value:
        packed = self.normed_product(stream, norm, names)
        if not self._are_block_scaled((down,)):
            return self.residual_product(stream, gated(self.graph, packed, names, self.dtype), down, scale)
        with self.graph.module(layer_module(names[0], 3)):
            rows = block_scaled.gated_quantized(self.graph, packed)
        return self._added(stream, rows, down, scale)

    def residual_product(self, stream: ir.Value, x: ir.Value, name: str, scale: float) -> ir.Value:
        """The sum is over rows where it joins the product's kernel, else over [B, T, H], where it joins the norm's."""
        if self._are_block_scaled((name,)):
            return self._added(stream, self._quantized_rows(x, (name,)), name, scale)
        factor = self.graph.number(scale, self.dtype)
        if name in self._checkpoint.quantized:
            return add_scaled(self.graph, stream, self.product(x, (name,)), name, factor)
        with self.graph.module(product_module((name,))):
            rows, product = self._rows(stream), self._plain_product(self._rows(x), (name,))
            return self._like(stream, add_scaled(self.graph, rows, product, name, factor))

    def _product(self, x: ir.Value, names: Names) -> ir.Value:
        """The product of weights that are all quantised, or none of them."""
        weights = [self._checkpoint.quantized[name] for name in names if name in self._checkpoint.quantized]
        if weights and weights[0].precision is Precision.INT4:
            return self._int4_product(x, weights)
        if self._are_block_scaled(names):
            return self._block_scaled_product(self._quantized_rows(x, names), names)
        rows = self._rows(x)
        if not weights:
            return self._like(x, self._plain_product(rows, names))
        if weights[0].precision is Precision.NVFP4:
            return self._like(x, self._nvfp4_product(rows, weights))
        return self._like(x, self._scaled_product(rows, weights))

    def _plain_product(self, rows: ir.Value, names: Names) -> ir.Value:
        """A float16 product is stated in fp32 between casts, so that its sums are in fp32; TensorRT takes the casts
        back into a product of float16 operands."""
        sums = DType.FLOAT32 if self.dtype is DType.FLOAT16 else self.dtype
        weight = self.graph.cast(self._plain(names), sums)
        return self.graph.cast(self._gemm(self.graph.cast(rows, sums), weight), self.dtype)

    def _scaled_product(self, rows: ir.Value, weights: Sequence[QuantizedWeight]) -> ir.Value:
        """fp8 and int8: a product of codes, rounded to `dtype` and then multiplied by both scales in fp32."""
        graph, name = self.graph, _module(weights)
        wide, by_token = graph.cast(rows, DType.FLOAT32), weights[0].by_token
        row_scale = token_scales(graph, wide, _code_type(weights)) if by_token else self._input_scale(weights)
        steps = graph.node("Div", [wide, row_scale])
        one, stored = graph.number(1.0, DType.FLOAT32), IR_TYPES[_code_type(weights)]
        quantized = graph.node("QuantizeLinear", [steps, one], {"output_dtype": int(stored)}, dtype=stored)
        weight = self._codes(weights)
        product = self._gemm(self._dequantized(quantized, one), self._dequantized(weight, one))
        scale = self._input(
            TensorSpec(f"{name}.output_scale", DType.FLOAT32, shape_of(weight)[:1]),
            [WeightPart(tensor=each.scale_name, rows=each.shape[0], factor=each.input_scale_name) for each in weights],
        )
        scaled = graph.node("Mul", [graph.cast(product, DType.FLOAT32), scale])
        return graph.cast(graph.node("Mul", [scaled, row_scale]) if by_token else scaled, self.dtype)

    def _nvfp4_product(self, rows: ir.Value, weights: Sequence[QuantizedWeight]) -> ir.Value:
        """Codes are an input. Scales of blocks are constants: for others TensorRT adds kernels to every product."""
        graph, first = self.graph, weights[0]
        assert first.input_scale is not None
        x = nvfp4_input(graph, rows, graph.number(first.input_scale, DType.FLOAT32))
        self.fixed += [name for weight in weights for name in weight.tensors if name != weight.data_name]
        outputs, inputs = _packed_shape(weights)
        stored = self._constant(
            f"{_module(weights)}.weight_scale",
            ir.DataType.FLOAT8E4M3FN,
            (outputs, inputs // NVFP4_BLOCK),
            lambda: (weight.scale.raw() for weight in weights),
        )
        scale = self._dequantized(stored, graph.number(first.global_scale, DType.FLOAT32))
        blocks = {"axis": 1, "block_size": NVFP4_BLOCK}
        weight = graph.node("DequantizeLinear", [self._codes(weights), scale], blocks, dtype=IR_TYPES[self.dtype])
        return self._gemm(x, weight)

    def _int4_product(self, x: ir.Value, weights: Sequence[QuantizedWeight]) -> ir.Value:
        """TensorRT multiplies codes that are constants; those of an input it would unpack in every step.

        Not over rows, since a Reshape before this product would be a kernel of its own. And [in, out]: of [out, in]
        TensorRT makes the same plan, but takes twice as long. Its scales have the type of `x`: with a cast behind
        fp16 or fp32 ones it unpacks the codes in every step as well.
        """
        name, (outputs, inputs) = _module(weights), _packed_shape(weights)
        # The engine takes none that hold for more.
        blocks = inputs // _INT4_GROUP
        self.fixed += [name for weight in weights for name in weight.tensors]
        codes = self._constant(
            f"{name}.weight",
            ir.DataType.INT4,
            (inputs, outputs),
            lambda: [int4_columns([weight.data for weight in weights])],
        )
        scale = self._constant(
            f"{name}.weight_scale",
            ir.DataType.BFLOAT16,
            (blocks, outputs),
            lambda: [scale_columns([weight.scale for weight in weights], blocks)],
        )
        attributes = {"axis": 0, "block_size": _INT4_GROUP}
        weight = self.graph.node("DequantizeLinear", [codes, scale], attributes, dtype=IR_TYPES[self.dtype])
        return self.graph.node("MatMul", [x, weight], shape=(*shape_of(x)[:-1], outputs))

    def _are_block_scaled(self, names: Names) -> bool:
        quantized = self._checkpoint.quantized
        return all(name in quantized and quantized[name].precision is Precision.MXFP8 for name in names)

    def _quantized_rows(self, x: ir.Value, names: Names) -> ScaledRows:
        with self.graph.module(product_module(names)):
            return block_scaled.quantized(self.graph, x)

    def _block_scaled_product(self, rows: ScaledRows, names: Names) -> ir.Value:
        with self.graph.module(product_module(names)):
            return block_scaled.product(self.graph, rows, self._block_scaled_weight(names), IR_TYPES[self.dtype])

    def _added(self, stream: ir.Value, rows: ScaledRows, name: str, scale: float) -> ir.Value:
        """The sum is a part of the product's kernel."""
        with self.graph.module(product_module((name,))):
            return block_scaled.product_added(self.graph, stream, rows, self._block_scaled_weight((name,)), scale)

    def _block_scaled_weight(self, names: Names) -> ScaledRows:
        """Codes as they are stored, and their scales in the operators' words, which a runtime lays out as it loads."""
        weights = [self._checkpoint.quantized[name] for name in names]
        outputs, inputs = _packed_shape(weights)
        spec = TensorSpec(f"{_module(weights)}.weight_scale", DType.INT32, (inputs // WORD_COLUMNS, outputs))
        parts = [WeightPart(tensor=weight.scale_name) for weight in weights]
        return ScaledRows(self._codes(weights), self._input(spec, parts, layout=WeightLayout.WORD_COLUMNS))

    def _constant(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], arrays: Arrays) -> ir.Value:
        return self.graph.initializer(name, self.constants.place(name, dtype, shape, arrays))

    def _dequantized(self, codes: ir.Value, scale: ir.Value) -> ir.Value:
        """Codes times one scale, in `dtype`."""
        dtype = IR_TYPES[self.dtype]
        return self.graph.node("DequantizeLinear", [codes, scale], {"output_dtype": int(dtype)}, dtype=dtype)

    def _gemm(self, rows: ir.Value, weight: ir.Value) -> ir.Value:
        shape = (shape_of(rows)[0], shape_of(weight)[0])
        return self.graph.node("Gemm", [rows, weight], {"transB": 1}, shape=shape)

    def _rows(self, x: ir.Value) -> ir.Value:
        """[B*T, size] of [B, T, size]; [B, size] as it is."""
        *_, size = shape_of(x)
        if len(shape_of(x)) == 2:
            return x
        return self.graph.node("Reshape", [x, self.graph.integers(-1, int(size))], shape=(FLAT_ROWS, size))

    def _like(self, x: ir.Value, rows: ir.Value) -> ir.Value:
        """`rows` [B*T, size] as [B, T, size], if `x` has three dimensions."""
        if len(shape_of(x)) == 2:
            return rows
        graph, size = self.graph, int(shape_of(rows)[1])
        if self._row_count is None:
            self._row_count = graph.node("Shape", [x], {"start": 0, "end": 2}, dtype=ir.DataType.INT64, shape=(2,))
        shape = graph.node("Concat", [self._row_count, graph.integers(size)], {"axis": 0}, shape=(3,))
        return graph.node("Reshape", [rows, shape], shape=(*shape_of(x)[:2], size))

    def _plain(self, names: Names, leading: int = 0) -> ir.Value:
        """Weights that are not quantised as one input, with so many extents of 1 before their own."""
        shapes = [self._checkpoint.locations[name].shape for name in names]
        shape = (*(1,) * leading, sum(shape[0] for shape in shapes), *shapes[0][1:])
        return self._input(
            TensorSpec(packed_name(names), self.dtype, shape), [WeightPart(tensor=name) for name in names]
        )

    def _codes(self, weights: Sequence[QuantizedWeight]) -> ir.Value:
        """Quantised weights as one input."""
        spec = TensorSpec(f"{_module(weights)}.weight", _code_type(weights), _packed_shape(weights))
        return self._input(spec, [WeightPart(tensor=weight.data_name) for weight in weights])

    def _input_scale(self, weights: Sequence[QuantizedWeight]) -> ir.Value:
        spec = TensorSpec(f"{_module(weights)}.input_scale", DType.FLOAT32, (1,))
        told = [weight.input_scale_name for weight in weights if weight.input_scale_name is not None]
        return self._input(spec, [WeightPart(tensor=name) for name in told])

    def _input(self, spec: TensorSpec, parts: Sequence[WeightPart], layout: WeightLayout | None = None) -> ir.Value:
        """The weight input of this name, which is new unless lm_head shares the embedding's."""
        if spec.name not in self._inputs:
            self._inputs[spec.name] = self.graph.input(spec)
            self.weights[spec.name] = WeightInput(spec=spec, parts=tuple(parts), layout=layout)
        return self._inputs[spec.name]


def _module(weights: Sequence[QuantizedWeight]) -> str:
    """`model.layers.0.self_attn.q_proj+k_proj+v_proj`"""
    return packed_name(tuple(weight.name for weight in weights)).removesuffix(".weight")


def _code_type(weights: Sequence[QuantizedWeight]) -> DType:
    """Type of codes that are an input."""
    dtype = weights[0].scheme.input_type
    assert dtype is not None
    return dtype


def _packed_shape(weights: Sequence[QuantizedWeight]) -> tuple[int, int]:
    """[out, in] of all weights together."""
    return sum(weight.shape[0] for weight in weights), weights[0].shape[1]
