"""The graph that an export will give and the memory that its engine will take, from config.json alone.

So a build that cannot fit is refused before minutes of tracing; `tests/test_planned_graph.py` holds it equal to what
`read_graph` finds in the exported file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from .checkpoint.config import Mixer, SalaConfig
from .checkpoint.keymap import EMBEDDING, Weight, packs, weights
from .checkpoint.quantization import Quantization
from .engine.graph import GRAPH_FILE, EngineGraph, OperatorNode
from .engine.memory import DeviceMemory, predict_memory
from .engine.request import EngineRequest
from .kernel_support import operator_workspaces
from .model.attributes import operator_attributes
from .model.signature import signature
from .ops.registry import INFLLMV2_ATTENTION, LIGHTNING_ATTENTION
from .specs import Precision

OPERATORS = {Mixer.LIGHTNING: LIGHTNING_ATTENTION.onnx_type, Mixer.SPARSE: INFLLMV2_ATTENTION.onnx_type}
"""ONNX type of the operator that computes a mixer."""


def operator_node(config: SalaConfig, layer: int) -> OperatorNode:
    """The node of domain `sala` in a layer, by the name that `onnx/naming.py` gives it."""
    mixer = config.mixer_types[layer]
    return OperatorNode(
        name=f"layers.{layer}.self_attn/{OPERATORS[mixer]}",
        op_type=OPERATORS[mixer],
        attributes=operator_attributes(config, mixer),
    )


def planned_graph(config: SalaConfig, precision: Precision, quantization: Quantization | None = None) -> EngineGraph:
    """What `read_graph` will find in the export of this model in this precision.

    Args: `quantization`, of a quantised checkpoint; None for what `Quantization.default` quantises. Scales per channel
        are not counted.
    """
    step = signature(config, precision.dtype)
    if precision.is_quantized and quantization is None:
        quantization = Quantization.default(precision)
    all_weights = weights(config)
    quantized = [weight for weight in all_weights if quantization and quantization.covers(weight.name)]
    sizes = {weight.name: _stored_bytes(weight, precision, quantization) for weight in all_weights}
    return EngineGraph(
        path=Path(GRAPH_FILE),
        inputs=step.inputs,
        outputs=step.outputs,
        operators=tuple(operator_node(config, layer) for layer in range(config.num_hidden_layers)),
        parameters=sum(weight.elements for weight in all_weights),
        quantized_parameters=sum(weight.elements for weight in quantized),
        weights_bytes=sum(sizes.values()),
        quantized_weights_bytes=sum(sizes[weight.name] for weight in quantized),
        layer_weights_bytes=_layer_weights_bytes(config, all_weights, sizes),
        hidden_size=config.hidden_size,
        widest_projection=max(config.hidden_size, *_widths(all_weights, {weight.name for weight in quantized})),
        activation_dtype=precision.dtype,
    )


def _stored_bytes(weight: Weight, precision: Precision, quantization: Quantization | None) -> int:
    if quantization is not None and quantization.covers(weight.name):
        return quantization.stored_bytes(weight.shape[0], weight.shape[1])
    return weight.elements * precision.dtype.bytes


def _widths(all_weights: Sequence[Weight], quantized: Collection[str]) -> Iterator[int]:
    """Output features of every packed product; a pack that is quantised in part is two of them."""
    for pack in packs(all_weights):
        for _, together in groupby(pack, key=lambda weight: weight.name in quantized):
            yield sum(weight.shape[0] for weight in together)


def _layer_weights_bytes(
    config: SalaConfig, all_weights: Sequence[Weight], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    """As `EngineGraph` counts them."""
    layers = config.num_hidden_layers
    found = [0] * layers
    for weight in all_weights:
        layer = weight.layer if weight.layer is not None else 0 if weight.name == EMBEDDING else layers - 1
        found[layer] += sizes[weight.name]
        if weight.name == EMBEDDING and config.tie_word_embeddings and layers > 1:
            found[-1] += sizes[weight.name]
    return tuple(found)


def planned_memory(
    config: SalaConfig, request: EngineRequest, shards: int = 1, quantization: Quantization | None = None
) -> DeviceMemory:
    """What the engine of this model will take on its GPU, the scratch of the shipped kernels included."""
    workspaces = operator_workspaces(
        config,
        request.precision,
        batch=request.max_batch,
        tokens=request.prefill_chunk,
        capacity=request.max_context,
    )
    return predict_memory(planned_graph(config, request.precision, quantization), request, shards, workspaces)
