"""Tracing one step of the model to ONNX IR without its weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from .. import __version__
from ..checkpoint.config import MODEL_TYPE, SalaConfig
from ..errors import ExportError
from ..model.layers import Cache
from ..model.sala import SalaForCausalLM
from ..model.signature import Signature, cache_sizes
from ..specs import DType, Precision
from .op_symbols import translation_table

OPSET = 20

IR_TYPES = {
    DType.FLOAT32: ir.DataType.FLOAT,
    DType.FLOAT16: ir.DataType.FLOAT16,
    DType.BFLOAT16: ir.DataType.BFLOAT16,
}

# The smallest sizes that torch.export does not take for constants.
_TRACE_SIZES = {"batch": 2, "tokens": 3}
_TRACE_CAPACITY = 8192


class StepGraph(nn.Module):
    """`SalaForCausalLM.step` with its caches as one flat list, in the order of `signature.py`."""

    def __init__(self, model: SalaForCausalLM) -> None:
        super().__init__()
        self.sala = model
        self.cache_tensors = [len(cache) for cache in model.new_caches(1, 1)]

    def forward(
        self,
        input_ids: Tensor,
        past_length: Tensor,
        context_length: Tensor,
        rope_cos_sin: Tensor,
        caches: list[Tensor],
    ) -> tuple[Tensor, ...]:
        flat = iter(caches)
        by_layer: list[Cache] = [tuple(next(flat) for _ in range(count)) for count in self.cache_tensors]
        logits, updated = self.sala.step(input_ids, past_length, context_length, rope_cos_sin, by_layer)
        return (logits, *(tensor for cache in updated for tensor in cache))


def trace(config: SalaConfig, precision: Precision, step: Signature) -> ir.Model:
    """The step as an ONNX IR model whose weights are initializers with name, type and shape but no value.

    Raises: ExportError if the exporter gives no graph.
    """
    with torch.device("meta"):
        model = SalaForCausalLM(config).to(getattr(torch, precision.dtype.value))
        graph = StepGraph(model).eval()
        sizes = {**_TRACE_SIZES, **cache_sizes(config, _TRACE_CAPACITY, _TRACE_SIZES["batch"])}
        examples = [torch.empty(spec.bound(sizes), dtype=getattr(torch, spec.dtype.value)) for spec in step.inputs]
    symbols = {name: torch.export.Dim(name) for name in sizes}
    dynamic = [
        {axis: symbols[extent] for axis, extent in enumerate(spec.shape) if isinstance(extent, str)}
        for spec in step.inputs
    ]
    tokens = len(step.token_inputs)
    with _quiet_exporter():
        program = torch.onnx.export(
            graph,
            (*examples[:tokens], examples[tokens:]),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            custom_translation_table=translation_table(),
            dynamic_shapes=(*dynamic[:tokens], dynamic[tokens:]),
            input_names=[spec.name for spec in step.inputs],
            output_names=[spec.name for spec in step.outputs],
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    return _folded(program.model)


def checkpoint_name(value: ir.Value) -> str:
    """Checkpoint name of a traced weight."""
    assert value.name is not None
    return value.name.removeprefix("sala.")


def stamp(model: ir.Model) -> None:
    """Say in the file what the graph is and who wrote it."""
    model.graph.name = MODEL_TYPE
    model.producer_name, model.producer_version = "sala-export", __version__


def _folded(model: ir.Model) -> ir.Model:
    """Fold the exporter's scalar arithmetic. Weights have no value yet, so that nothing is computed from them."""
    for initializer in model.graph.initializers.values():
        initializer.const_value = None
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's remarks about torchvision and about equal axis names away from users."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        exporter_log.setLevel(level)
