"""Plans, from config.json alone, the graph that an export will write and the memory that its engine will take.

So a build that cannot fit is refused before anything is written, and `plan` needs no weights.
`tests/building/test_planned_graph.py` checks that `read_graph` finds the same in the exported file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from ..checkpoint.config import SalaConfig
from ..checkpoint.folder import CONFIG_FILE
from ..checkpoint.keymap import PACKED_ROLES, Weight, layer_packs, packed_name, weights
from ..checkpoint.quantization import Quantization, Scheme, require_quantizable
from ..engine.graph import EngineGraph, OperatorNode
from ..engine.memory import MemoryUsage, predict_memory
from ..engine.request import EngineRequest
from ..model.mixers import MIXERS
from ..model.signature import signature
from ..numerics.number_formats import WORD_COLUMNS
from ..specs import DType, Precision, TensorSpec
from .kernel_support import operator_workspaces


def operator_node(config: SalaConfig, layer: int) -> OperatorNode:
    """Describe the node of domain `sala` in a layer, under the name that `onnx/step_graph.py` gives it."""
    kind = MIXERS[config.mixer_types[layer]]
    name = kind.contract.onnx_type
    return OperatorNode(name=f"layers.{layer}.self_attn/{name}", op_type=name, attributes=kind.attributes(config))


_LEADING_ONES = {"input_layernorm": 2, "post_attention_layernorm": 2, "norm": 1}
"""Extents of 1 before those of the checkpoint, by role: what norms need to join other kernels."""


def planned_graph(config: SalaConfig, precision: Precision, quantization: Quantization | None = None) -> EngineGraph:
    """Describe the engine's graph of this model in this precision, as `read_graph` will find it.

    Args: `quantization` is that of a quantised checkpoint. None stands for `Quantization.default`.
    Raises: UnsupportedError for sizes that cannot be quantised so.
    """
    step = signature(config, precision.dtype)
    if precision.is_quantized and quantization is None:
        quantization = Quantization.default(precision)
    all_weights = weights(config)
    quantized = [weight for weight in all_weights if quantization and quantization.covers(weight.name)]
    for weight in quantized:
        assert quantization is not None
        require_quantizable(weight.name, weight.shape[1], quantization.scheme)
    schemes = {weight.name: quantization.scheme for weight in quantized if quantization}
    groups = list(_groups(all_weights, schemes))
    own_norms = _norms_of_operators(config, quantization)
    return EngineGraph(
        path=Path(CONFIG_FILE),
        inputs=step.inputs,
        weights=tuple(
            spec
            for group in groups
            for spec in _weight_inputs(
                group, precision, schemes.get(group[0].name), is_of_operator=group[0].name in own_norms
            )
        ),
        outputs=step.outputs,
        operators=tuple(operator_node(config, layer) for layer in range(config.num_hidden_layers)),
        parameters=sum(weight.elements for weight in all_weights),
        quantized_parameters=sum(weight.elements for weight in quantized),
        constant_bytes=sum(_constant_bytes(weight, quantization) for weight in quantized),
        hidden_size=config.hidden_size,
        widest_projection=max(config.hidden_size, *(_rows(group) for group in groups if _is_projection(group[0]))),
        activation_dtype=precision.dtype,
    )


def _groups(all_weights: Sequence[Weight], quantized: Collection[str]) -> Iterator[tuple[Weight, ...]]:
    """Weights that are one input together; a pack that is quantised in part is two of them."""
    pack_of = {role: "+".join(roles) for roles in PACKED_ROLES for role in roles}
    for _, pack in groupby(all_weights, key=lambda weight: (weight.layer, pack_of.get(weight.role, weight.name))):
        for _, together in groupby(pack, key=lambda weight: weight.name in quantized):
            yield tuple(together)


def _norms_of_operators(config: SalaConfig, quantization: Quantization | None) -> set[str]:
    """Norms before products of MXFP8 alone: an operator computes them, and takes their weight as it is."""
    if quantization is None or quantization.precision is not Precision.MXFP8:
        return set()
    norms = ("input_layernorm", "post_attention_layernorm")
    return {
        f"model.layers.{layer}.{norm}.weight"
        for layer in range(config.num_hidden_layers)
        for norm, names in zip(norms, layer_packs(config, layer), strict=True)
        if all(quantization.covers(name) for name in names)
    }


def _is_projection(weight: Weight) -> bool:
    return weight.layer is not None and len(weight.shape) == 2


def _rows(group: Sequence[Weight]) -> int:
    return sum(weight.shape[0] for weight in group)


def _weight_inputs(
    group: Sequence[Weight], precision: Precision, scheme: Scheme | None, *, is_of_operator: bool
) -> Iterator[TensorSpec]:
    """The inputs that hold a group, and the scales of its product where they are inputs too."""
    name, shape = packed_name([weight.name for weight in group]), (_rows(group), *group[0].shape[1:])
    if scheme is None:
        ones = 0 if is_of_operator else _LEADING_ONES.get(group[0].role, 0)
        yield TensorSpec(name, precision.dtype, (*(1,) * ones, *shape))
    elif scheme.input_type is not None:
        module = name.removesuffix(".weight")
        if "input_scale" in scheme.tensors:
            yield TensorSpec(f"{module}.input_scale", DType.FLOAT32, (1,))
        yield TensorSpec(name, scheme.input_type, shape)
        if scheme.group is None:
            yield TensorSpec(f"{module}.output_scale", DType.FLOAT32, shape[:1])
        elif scheme.precision is Precision.MXFP8:
            yield TensorSpec(f"{module}.weight_scale", DType.INT32, (shape[1] // WORD_COLUMNS, shape[0]))


def _constant_bytes(weight: Weight, quantization: Quantization | None) -> int:
    """Of a quantised weight inside the graph: its codes and scales in int4, its block scales in nvfp4."""
    if quantization is None or quantization.precision is Precision.MXFP8:
        return 0
    inputs = weight.elements * quantization.scheme.bits // 8 if quantization.scheme.input_type else 0
    return quantization.stored_bytes(weight.shape[0], weight.shape[1]) - inputs


def planned_memory(graph: EngineGraph, config: SalaConfig, request: EngineRequest) -> MemoryUsage:
    """Predict the memory of an engine on a GPU, with the scratch of the shipped kernels, from its planned graph."""
    prefill, decode = (
        operator_workspaces(config, request.precision, batch=batch, tokens=tokens, capacity=request.max_context)
        for batch, tokens in ((1, request.prefill_chunk), (request.max_batch, 1))
    )
    return predict_memory(graph, request, {name: max(size, decode[name]) for name, size in prefill.items()})
