"""The graph that an export will give and the memory that its engine will take, from config.json alone.

So a build that cannot fit is refused before minutes of tracing; `tests/test_planned_graph.py` holds it equal to what
`read_graph` finds in the exported file.
"""

from __future__ import annotations

from pathlib import Path

from .checkpoint.config import Mixer, SalaConfig
from .checkpoint.keymap import EMBEDDING, weights
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


def planned_graph(config: SalaConfig, precision: Precision) -> EngineGraph:
    """What `read_graph` will find in the export of this model in this precision."""
    step = signature(config, precision.dtype)
    parameters = sum(weight.elements for weight in weights(config))
    width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    packed = {Mixer.LIGHTNING: 4 * width, Mixer.SPARSE: 2 * (width + kv_width)}
    return EngineGraph(
        path=Path(GRAPH_FILE),
        inputs=step.inputs,
        outputs=step.outputs,
        operators=tuple(operator_node(config, layer) for layer in range(config.num_hidden_layers)),
        parameters=parameters,
        weights_bytes=parameters * precision.dtype.bytes,
        layer_weights_bytes=_layer_weights_bytes(config, precision),
        hidden_size=config.hidden_size,
        widest_projection=max(
            config.hidden_size, 2 * config.intermediate_size, *(packed[mixer] for mixer in config.mixer_types)
        ),
        activation_dtype=precision.dtype,
    )


def _layer_weights_bytes(config: SalaConfig, precision: Precision) -> tuple[int, ...]:
    """As `EngineGraph` counts them."""
    layers = config.num_hidden_layers
    elements = [0] * layers
    for weight in weights(config):
        elements[weight.layer if weight.layer is not None else 0 if weight.name == EMBEDDING else layers - 1] += (
            weight.elements
        )
        if weight.name == EMBEDDING and config.tie_word_embeddings and layers > 1:
            elements[-1] += weight.elements
    return tuple(count * precision.dtype.bytes for count in elements)


def planned_memory(config: SalaConfig, request: EngineRequest, shards: int = 1) -> DeviceMemory:
    """What the engine of this model will take on its GPU, the scratch of the shipped kernels included."""
    workspaces = operator_workspaces(
        config,
        request.precision,
        batch=request.max_batch,
        tokens=request.prefill_chunk,
        capacity=request.max_context,
    )
    return predict_memory(planned_graph(config, request.precision), request, shards, workspaces)
