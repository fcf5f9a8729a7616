"""The step for ONNX Runtime on the CPU, in two graphs whose weights are inputs: one is exact, the other fast.

A product is a node `sala::Linear` over the tensors of its weights as the checkpoint stores them. So a runtime can map
them from their files, and no weight is copied or converted but the small ones of the norms.

A quantised checkpoint gives the products the numbers that an engine gives them: inputs are rounded to the quantised
type in the graph, or, in mxfp8, by the product itself. Where these have one scale, that is an input as well, so that
other weights can bring their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle.manifest import WeightInput, WeightPart
from ..checkpoint.keymap import EMBEDDING, packed_name, weights
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensor_location import TensorLocation
from ..model.signature import Signature, signature
from ..specs import OPERATOR_DOMAIN, CpuMath, DType, Precision, TensorSpec
from .fake_quantization import codes_of, nvfp4_codes, rounded_by_token
from .graph_builder import OPSET, QUANTIZED_OPSET, GraphBuilder, shape_of
from .layer_parts import SeparateParts, gated, norm_module
from .products import Names, add_scaled, product_module, split_product
from .step_graph import Norm, build_step

CPU_GRAPH_FILES: Mapping[CpuMath, str] = {CpuMath.EXACT: "cpu.onnx", CpuMath.FAST: "cpu_fast.onnx"}

_KINDS = {
    Precision.FP8: "float8_e4m3fn",
    Precision.MXFP8: "mxfp8",
    Precision.INT8: "int8",
    Precision.INT4: "int4",
    Precision.NVFP4: "nvfp4",
}
"""What `Linear` calls quantised weights. The others have the names of their types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuGraph:
    """Interface of the written graphs: that of a step by the arithmetic, then the weights, which are the same."""

    steps: Mapping[CpuMath, Signature]
    weights: tuple[WeightInput, ...]


def export_cpu_graph(checkpoint: Checkpoint, directory: Path, precision: Precision) -> CpuGraph:
    """Write `cpu.onnx` and `cpu_fast.onnx`, which hold no weight, into `directory`.

    Args: `precision`, whose type the caches of the fast graph have.
    """
    steps, inputs = {}, []
    for math, file in CPU_GRAPH_FILES.items():
        form = CpuForm(checkpoint, math, precision)
        ir.save(build_step(checkpoint.config, form), directory / file)
        steps[math] = signature(checkpoint.config, form.cache_dtype)
        inputs.append(tuple(form.weights.values()))
    assert inputs[0] == inputs[1], "one list describes the weights of both graphs"
    return CpuGraph(steps=steps, weights=inputs[0])


class CpuForm(SeparateParts):
    """See `step_graph.Form`."""

    dtype = DType.FLOAT32

    def __init__(self, checkpoint: Checkpoint, math: CpuMath, precision: Precision) -> None:
        """Args: `precision`, whose type the caches have if `math` is fast."""
        self.graph = GraphBuilder(QUANTIZED_OPSET if checkpoint.quantized else OPSET)
        self.cache_dtype = self.dtype if math is CpuMath.EXACT else precision.dtype
        self.weights: dict[str, WeightInput] = {}
        """By name, in the order of the graph's inputs behind those of the step."""
        self._math = math
        self._checkpoint = checkpoint
        self._shapes = {weight.name: weight.shape for weight in weights(checkpoint.config)}
        self._inputs: dict[str, ir.Value] = {}

    def embedding(self) -> ir.Value:
        return self._stored(EMBEDDING, self._checkpoint.locations[EMBEDDING])

    def norm(self, x: ir.Value, norm: Norm) -> ir.Value:
        """One node of ONNX Runtime, which takes a third of the time that nodes of standard ONNX take."""
        weight = self.operator_weight(norm.weight)
        with self.graph.module(norm_module(norm.weight)):
            attributes = {"axis": -1, "epsilon": norm.eps, "stash_type": 1}
            return self.graph.node("SimplifiedLayerNormalization", [x, weight], attributes)

    def operator_weight(self, name: str) -> ir.Value:
        return self._input(TensorSpec(name, DType.FLOAT32, self._shapes[name]), WeightPart(tensor=name))

    def product(self, x: ir.Value, names: Names) -> ir.Value:
        return split_product(self.graph, names, self._kind, lambda part: self._linear(x, part))

    def gated_product(self, x: ir.Value, names: Names) -> ir.Value:
        """`silu(gate x) * up x`: a part of the product's own node where the weights of gate and up are of one kind."""
        if len({self._kind(name) for name in names}) > 1:
            return gated(self.graph, self.product(x, names), names, self.dtype)
        with self.graph.module(product_module(names)):
            return self._linear(x, names, epilogue="silu_mul")

    def residual_product(self, stream: ir.Value, x: ir.Value, name: str, scale: float) -> ir.Value:
        return add_scaled(self.graph, stream, self.product(x, (name,)), name, self.graph.number(scale, self.dtype))

    def _kind(self, name: str) -> Hashable:
        """What the weights of one node have in common: how they are stored, and the scales that it has once."""
        weight = self._checkpoint.quantized.get(name)
        return _kind_of(weight, self._checkpoint, name), None if weight is None else weight.product

    def _linear(self, x: ir.Value, names: Names, epilogue: str = "none") -> ir.Value:
        """The product of weights of one kind, and what `epilogue` makes of it."""
        checkpoint = self._checkpoint
        quantized = [checkpoint.quantized[name] for name in names if name in checkpoint.quantized]
        inputs = [self._rounded(x, names, quantized)]
        for name in names:
            weight = checkpoint.quantized.get(name)
            if weight is None:
                inputs.append(self._stored(name, checkpoint.locations[name]))
            else:
                inputs += [self._stored(weight.data_name, weight.data), self._scales(weight)]
        rows = sum(self._shapes[name][0] for name in names)
        attributes = {
            "weights": _kind_of(quantized[0] if quantized else None, checkpoint, names[0]),
            "math": self._math.value,
            "epilogue": epilogue,
            "global_scale": _global_scale(quantized),
        }
        shape = (*shape_of(x)[:-1], rows if epilogue == "none" else rows // 2)
        return self.graph.node("Linear", inputs, attributes, shape=shape, domain=OPERATOR_DOMAIN)

    def _rounded(self, x: ir.Value, names: Names, quantized: Sequence[QuantizedWeight]) -> ir.Value:
        """The input of a product as quantisation leaves it, without its scale where it has one.

        A product of mxfp8 rounds its input itself, in blocks.
        """
        dtype = quantized[0].scheme.input_type if quantized else None
        if dtype is None or quantized[0].precision is Precision.MXFP8:
            return x
        if quantized[0].by_token:
            return rounded_by_token(self.graph, x, dtype)
        told = [weight.input_scale_name for weight in quantized if weight.input_scale_name is not None]
        if not told:
            assert quantized[0].input_scale is not None
            return nvfp4_codes(self.graph, x, quantized[0].input_scale)
        spec = TensorSpec(f"{packed_name(names).removesuffix('.weight')}.input_scale", DType.FLOAT32, (1,))
        parts = [WeightPart(tensor=name) for name in told]
        return codes_of(self.graph, x, dtype, self._input(spec, *parts))

    def _scales(self, weight: QuantizedWeight) -> ir.Value:
        """Scales of groups as they are stored. Others for each row, times that of an input that comes as codes."""
        if weight.scheme.group is not None:
            return self._stored(weight.scale_name, weight.scale)
        rows = weight.shape[0]
        spec = TensorSpec(f"{weight.name.removesuffix('.weight')}.output_scale", DType.FLOAT32, (rows,))
        return self._input(spec, WeightPart(tensor=weight.scale_name, rows=rows, factor=weight.input_scale_name))

    def _stored(self, name: str, where: TensorLocation) -> ir.Value:
        """A tensor of the checkpoint as it is stored."""
        return self._input(TensorSpec(name, where.dtype, where.shape), WeightPart(tensor=name))

    def _input(self, spec: TensorSpec, *parts: WeightPart) -> ir.Value:
        """The weight input of this name, which is new unless lm_head shares the embedding's."""
        if spec.name not in self._inputs:
            self._inputs[spec.name] = self.graph.input(spec)
            self.weights[spec.name] = WeightInput(spec=spec, parts=parts)
        return self._inputs[spec.name]


def _global_scale(quantized: Sequence[QuantizedWeight]) -> float:
    """That of weights, in nvfp4 times that of the input, in fp32; 1 if they have none."""
    if not quantized or quantized[0].precision is not Precision.NVFP4:
        return 1.0
    assert quantized[0].input_scale is not None
    return float(np.float32(quantized[0].global_scale) * np.float32(quantized[0].input_scale))


def _kind_of(weight: QuantizedWeight | None, checkpoint: Checkpoint, name: str) -> str:
    """What `Linear` calls the weight `name`."""
    return checkpoint.locations[name].dtype.value if weight is None else _KINDS[weight.precision]
