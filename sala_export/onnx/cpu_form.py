"""The step in fp32 for ONNX Runtime on the CPU, its weights graph inputs.

ONNX Runtime on x86 has no bf16 product, and left to itself it folds Cast, Concat and Transpose of every weight, which
peaked at seven times the stored bytes. So the CPU graph states the packed fp32 weight of each projection as an input,
[out, in] as stored; a runtime fills it once by converting the stored parts one after the other. The embedding keeps its
stored type, since only the rows of a chunk are converted.

A quantised checkpoint gives the products the numbers that an engine gives them: weights dequantised to fp32 when they
are loaded, inputs rounded to the quantised type in the graph. Where these have one scale, that is an input as well, so
that other weights can bring their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..bundle.manifest import Dequantization, WeightInput, WeightPart
from ..checkpoint.keymap import EMBEDDING, LM_HEAD, packed_name, weights
from ..checkpoint.quantized_weights import QuantizedWeight
from ..checkpoint.reader import Checkpoint
from ..model.signature import Signature, signature
from ..specs import DType, TensorSpec
from .fake_quantization import rounded, rounded_by_token, rounded_nvfp4
from .graph_builder import OPSET, QUANTIZED_OPSET, GraphBuilder, shape_of
from .products import Names, add_scaled, split_product
from .step_graph import build_step

CPU_GRAPH_FILE = "cpu.onnx"
_CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuGraph:
    """Interface of the written graph: the step's signature in fp32, then the weights."""

    step: Signature
    weights: tuple[WeightInput, ...]


def export_cpu_graph(checkpoint: Checkpoint, directory: Path) -> CpuGraph:
    """Write `cpu.onnx`, which holds no weight, into `directory`."""
    form = CpuForm(checkpoint)
    ir.save(build_step(checkpoint.config, form), directory / CPU_GRAPH_FILE)
    return CpuGraph(step=signature(checkpoint.config, DType.FLOAT32), weights=tuple(form.weights))


class CpuForm:
    """See `step_graph.Form`."""

    dtype = DType.FLOAT32

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.graph = GraphBuilder(QUANTIZED_OPSET if checkpoint.quantized else OPSET)
        self.graph.opset_imports[_CONTRIB] = 1
        self.weights: list[WeightInput] = []
        """In the order of the graph's inputs, behind those of the step."""
        self._checkpoint = checkpoint
        self._shapes = {weight.name: weight.shape for weight in weights(checkpoint.config)}

    def embedding(self) -> ir.Value:
        return self._single(EMBEDDING, self._checkpoint.locations[EMBEDDING].dtype)

    def norm_weight(self, name: str) -> ir.Value:
        return self._single(name, DType.FLOAT32)

    def operator_weight(self, name: str) -> ir.Value:
        return self._single(name, DType.FLOAT32)

    def product(self, x: ir.Value, names: Names) -> ir.Value:
        return split_product(self.graph, names, self._checkpoint.quantized, lambda part: self._product(x, part))

    def residual_product(self, stream: ir.Value, x: ir.Value, name: str, scale: float) -> ir.Value:
        return add_scaled(self.graph, stream, self.product(x, (name,)), name, self.graph.number(scale, self.dtype))

    def _single(self, name: str, dtype: DType) -> ir.Value:
        return self._input(TensorSpec(name, dtype, self._shapes[name]), WeightPart(tensor=name))

    def _input(self, spec: TensorSpec, *parts: WeightPart) -> ir.Value:
        self.weights.append(WeightInput(spec=spec, parts=parts))
        return self.graph.input(spec)

    def _product(self, x: ir.Value, names: Names) -> ir.Value:
        """The products of weights that are all quantised, or none of them."""
        rows, columns = sum(self._shapes[name][0] for name in names), self._shapes[names[0]][1]
        # A head that shares the embedding's numbers cannot share its input, which has the stored type.
        name = LM_HEAD if names == (EMBEDDING,) else packed_name(names)
        packed = self._input(TensorSpec(name, self.dtype, (rows, columns)), *map(self._part, names))
        x = self._rounded(x, names)
        shape = (*shape_of(x)[:-1], rows)
        return self.graph.node("FusedMatMul", [x, packed], {"transB": 1}, shape=shape, domain=_CONTRIB)

    def _part(self, name: str) -> WeightPart:
        weight = self._checkpoint.quantized.get(name)
        return WeightPart(tensor=name) if weight is None else dequantized_part(weight)

    def _rounded(self, x: ir.Value, names: Names) -> ir.Value:
        """The input of a product as quantisation leaves it."""
        quantized = [self._checkpoint.quantized[name] for name in names if name in self._checkpoint.quantized]
        dtype = quantized[0].scheme.input_type if quantized else None
        if dtype is None:
            return x
        if quantized[0].by_token:
            return rounded_by_token(self.graph, x, dtype)
        told = [weight.input_scale_name for weight in quantized if weight.input_scale_name is not None]
        if not told:
            assert quantized[0].input_scale is not None
            return rounded_nvfp4(self.graph, x, quantized[0].input_scale)
        spec = TensorSpec(f"{packed_name(names).removesuffix('.weight')}.input_scale", DType.FLOAT32, (1,))
        scale = self._input(spec, *(WeightPart(tensor=name) for name in told))
        return rounded(self.graph, x, dtype, scale)


def dequantized_part(weight: QuantizedWeight) -> WeightPart:
    """A quantised weight as the fp32 numbers that it stands for."""
    return WeightPart(
        tensor=weight.data_name,
        dequantization=Dequantization(
            precision=weight.precision,
            columns=weight.shape[1],
            scale=weight.scale_name,
            global_scale=weight.global_scale,
        ),
    )
