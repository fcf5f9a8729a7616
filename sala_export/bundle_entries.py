"""What the stages made, in the words of the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    CpuGraphEntry,
    Dequantization,
    EngineEntry,
    FileEntry,
    GraphEntry,
    ModelEntry,
    OperatorEntry,
    Range,
    ShardEntry,
    WeightInput,
    WeightPart,
    fingerprint,
)
from .checkpoint.config import SalaConfig
from .checkpoint.reader import Checkpoint
from .checkpoint.tensor_location import TensorLocation
from .engine.memory import DeviceMemory
from .engine.profiles import Profile
from .engine.report import EngineReport
from .engine.shard_builds import shard_files
from .engine.sharding import ShardRange
from .planned_graph import operator_node
from .specs import Precision, TensorSpec

if TYPE_CHECKING:
    from .onnx.cpu_form import CpuGraph


def describe_model(source: str, config: SalaConfig, weights: tuple[FileEntry, ...]) -> ModelEntry:
    """The model, whose weights are the files `weights`."""
    from .model.rope import inverse_frequencies

    return ModelEntry(
        source=source,
        config=config,
        inv_freq=tuple(inverse_frequencies(config.rope_theta, config.head_dim).tolist()),
        fingerprint=fingerprint(config, weights),
    )


def describe_graph(
    checkpoint: Checkpoint, precision: Precision, cpu: CpuGraph, weights: tuple[FileEntry, ...], *, included: bool
) -> GraphEntry:
    """The exported graphs; `weights` are the files that their weights lie in, whether `included` or not."""
    from .model.signature import signature
    from .onnx.cpu_form import CPU_GRAPH_FILE
    from .onnx.export import GRAPH_FILE

    step = signature(checkpoint.config, precision.dtype)
    nodes = [operator_node(checkpoint.config, layer) for layer in range(checkpoint.config.num_hidden_layers)]
    return GraphEntry(
        file=f"{GRAPH_FOLDER}/{GRAPH_FILE}",
        inputs=step.inputs,
        outputs=step.outputs,
        operators=tuple(
            OperatorEntry(layer=layer, type=node.op_type, node=node.name) for layer, node in enumerate(nodes)
        ),
        weights_included=included,
        weights=weights,
        cpu=CpuGraphEntry(
            file=f"{GRAPH_FOLDER}/{CPU_GRAPH_FILE}",
            inputs=cpu.step.inputs,
            outputs=cpu.step.outputs,
            weights=tuple(
                WeightInput(spec=weight.spec, parts=tuple(_weight_part(checkpoint, name) for name in weight.tensors))
                for weight in cpu.weights
            ),
        ),
    )


def _weight_part(checkpoint: Checkpoint, name: str) -> WeightPart:
    weight = checkpoint.quantized.get(name)
    if weight is None:
        return _stored_part(checkpoint.locations[name])
    return replace(
        _stored_part(weight.data),
        dequantization=Dequantization(
            precision=weight.precision,
            columns=weight.shape[1],
            scale=_stored_part(weight.scale),
            scale_shape=weight.scale_shape,
            global_scale=weight.global_scale,
        ),
    )


def _stored_part(where: TensorLocation) -> WeightPart:
    return WeightPart(
        file=f"{GRAPH_FOLDER}/{where.file.name}", offset=where.offset, bytes=where.length, dtype=where.dtype
    )


def describe_engine(
    shards: tuple[tuple[ShardRange, EngineReport], ...],
    *,
    library: FileEntry,
    predicted: DeviceMemory,
) -> EngineEntry:
    """The engine that the reports tell of, with the plugin `library` that its shards were built with.

    Args: `predicted`, the account of the whole model; what TensorRT reported takes its place for weights and
        activations.
    """
    reports = [report for _, report in shards]
    first = reports[0]
    memory = replace(
        predicted,
        weights_bytes=sum(report.memory.weights_bytes for report in reports),
        # Shards run one after the other in the same memory.
        activation_bytes=max(report.memory.activation_bytes for report in reports),
    )
    ranges: dict[str, dict[str, Range]] = {}
    for report in reports:
        for profile in report.profiles:
            ranges.setdefault(profile.name.value, {}).update(_symbolic_ranges(profile, report.inputs))
    return EngineEntry(
        shards=tuple(_shard_entry(index, shard, report, library) for index, (shard, report) in enumerate(shards)),
        gpu=first.recipe,
        gpu_name=first.gpu,
        compute_capability=first.compute_capability,
        tensorrt_flavour=first.flavour,
        tensorrt_version=first.tensorrt_version,
        plugin_library_sha256=library.sha256,
        profiles=ranges,
        device_memory_bytes=memory.parts(),
    )


def _shard_entry(index: int, shard: ShardRange, report: EngineReport, library: FileEntry) -> ShardEntry:
    files = shard_files(Path(ENGINE_FOLDER), index)
    return ShardEntry(
        plan=files.plan.as_posix(),
        report=files.report.as_posix(),
        log=files.log.as_posix(),
        first_layer=shard.first_layer,
        num_layers=shard.num_layers,
        inputs=report.inputs,
        outputs=report.outputs,
        plugin_library_serialized=library.path in report.plugin_libraries,
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
