"""Describes the results of the stages as entries of the manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    CpuGraphEntry,
    CpuStepEntry,
    EngineEntry,
    GpuEntry,
    GraphEntry,
    ModelEntry,
    OperatorEntry,
    Range,
    TensorEntry,
    WeightFile,
    WeightsEntry,
    config_sha256,
    fingerprint,
)
from ..checkpoint.config import SalaConfig
from ..checkpoint.reader import Checkpoint
from ..engine.build import LOG_FILE, PLAN_FILE, REPORT_FILE
from ..engine.graph import EngineGraph
from ..engine.memory import contexts
from ..engine.profiles import Profile
from ..engine.report import EngineReport
from ..engine.request import EngineRequest
from ..specs import CpuMath, TensorSpec
from .planned_graph import operator_node

if TYPE_CHECKING:
    from ..model.signature import Signature
    from ..onnx.cpu_form import CpuGraph
    from ..onnx.engine_form import WrittenEngineGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltGraphs:
    """The graphs of one step."""

    step: Signature
    """Interface of `model.onnx`."""
    cpu: CpuGraph
    engine: WrittenEngineGraph | None
    """None in a bundle for CPUs alone."""


def describe_model(source: str, config: SalaConfig, digests: Mapping[str, str]) -> ModelEntry:
    """Describe the model, whose tensors have these hashes by name."""
    config_hash = config_sha256(config)
    return ModelEntry(
        source=source,
        config=config,
        config_sha256=config_hash,
        inv_freq=config.inverse_frequencies(),
        fingerprint=fingerprint(config_hash, digests),
    )


def describe_weights(
    checkpoint: Checkpoint, digests: Mapping[str, str], constants: Collection[str], *, included: bool
) -> WeightsEntry:
    """Describe the checkpoint's tensors. The bytes of `constants` are part of the engine."""
    files = {name: file.size for name, file in sorted(checkpoint.shard_files().items())}
    return WeightsEntry(
        included=included,
        files=tuple(WeightFile(path=f"{GRAPH_FOLDER}/{name}", bytes=size) for name, size in files.items()),
        tensors={
            name: TensorEntry(
                file=f"{GRAPH_FOLDER}/{where.file.path.name}",
                offset=where.offset,
                bytes=where.length,
                dtype=where.dtype,
                shape=where.shape,
                sha256=digests[name],
                fixed=name in constants,
            )
            for name, where in checkpoint.tensors().items()
        },
    )


def describe_graph(config: SalaConfig, step: Signature, cpu: CpuGraph) -> GraphEntry:
    """Describe the graphs for ONNX tools and for ONNX Runtime. The first has the interface `step`."""
    from ..onnx.cpu_form import CPU_GRAPH_FILES
    from ..onnx.export import GRAPH_FILE

    steps = {
        math: CpuStepEntry(file=f"{GRAPH_FOLDER}/{CPU_GRAPH_FILES[math]}", inputs=each.inputs, outputs=each.outputs)
        for math, each in cpu.steps.items()
    }
    nodes = [operator_node(config, layer) for layer in range(config.num_hidden_layers)]
    return GraphEntry(
        file=f"{GRAPH_FOLDER}/{GRAPH_FILE}",
        inputs=step.inputs,
        outputs=step.outputs,
        operators=tuple(
            OperatorEntry(layer=layer, type=node.op_type, node=node.name) for layer, node in enumerate(nodes)
        ),
        cpu=CpuGraphEntry(weights=cpu.weights, exact=steps[CpuMath.EXACT], fast=steps[CpuMath.FAST]),
    )


def describe_engine(
    graph: EngineGraph, request: EngineRequest, written: WrittenEngineGraph, report: EngineReport, library_sha256: str
) -> EngineEntry:
    """Describe the engine of a report, built from `graph` with the plugin library of this hash inside."""
    from ..onnx.engine_form import ENGINE_GRAPH_FILE

    ranges = {profile.name.value: _symbolic_ranges(profile, report.inputs) for profile in report.profiles}
    return EngineEntry(
        plan=f"{ENGINE_FOLDER}/{PLAN_FILE}",
        report=f"{ENGINE_FOLDER}/{REPORT_FILE}",
        log=f"{ENGINE_FOLDER}/{LOG_FILE}",
        graph=f"{ENGINE_FOLDER}/{ENGINE_GRAPH_FILE}",
        weights=written.weights,
        target=request.target.name,
        gpus=tuple(
            GpuEntry(
                recipe=gpu.name,
                name=gpu.gpu,
                compute_capability=str(gpu.compute_capability),
                memory_bytes=gpu.memory_bytes,
                reserve_bytes=gpu.reserve_bytes,
                max_context=context,
            )
            for gpu, context in contexts(graph, request, report.memory)
        ),
        compute_capabilities=tuple(str(capability) for capability in request.target.compute_capabilities),
        tensorrt_flavour=report.flavour,
        tensorrt_version=report.tensorrt_version,
        plugin_library_sha256=library_sha256,
        profiles=ranges,
        device_memory_bytes=report.memory.parts(),
    )


def _symbolic_ranges(profile: Profile, inputs: tuple[TensorSpec, ...]) -> dict[str, Range]:
    """A profile's ranges by symbolic dimension, of which every input's shape is made."""
    shapes = {shape.name: shape for shape in profile.inputs}
    ranges = {}
    for spec in inputs:
        for axis, extent in enumerate(spec.shape):
            if isinstance(extent, str):
                shape = shapes[spec.name]
                ranges[extent] = Range(min=shape.min[axis], opt=shape.opt[axis], max=shape.max[axis])
    return ranges
