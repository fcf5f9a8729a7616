"""What the stages made, in the words of the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    CpuGraphEntry,
    EngineEntry,
    FileEntry,
    GraphEntry,
    ModelEntry,
    OperatorEntry,
    Range,
    WeightInput,
    WeightPart,
    fingerprint,
)
from .checkpoint.config import SalaConfig
from .checkpoint.reader import Checkpoint
from .engine.profiles import Profile
from .engine.report import EngineReport
from .planned_graph import operator_node
from .specs import Precision, TensorSpec

if TYPE_CHECKING:
    from .onnx.cpu_form import CpuGraph

PLAN_FILE = "engine.plan"
REPORT_FILE = "report.json"
LOG_FILE = "engine.log"


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
    where = checkpoint.locations[name]
    return WeightPart(
        file=f"{GRAPH_FOLDER}/{where.file.name}", offset=where.offset, bytes=where.length, dtype=where.dtype
    )


def describe_engine(report: EngineReport, library: FileEntry, inputs: tuple[TensorSpec, ...]) -> EngineEntry:
    """The engine that `report` tells of, with the plugin `library` that it was built with."""
    return EngineEntry(
        plan=f"{ENGINE_FOLDER}/{PLAN_FILE}",
        report=f"{ENGINE_FOLDER}/{REPORT_FILE}",
        log=f"{ENGINE_FOLDER}/{LOG_FILE}",
        gpu=report.recipe,
        gpu_name=report.gpu,
        compute_capability=report.compute_capability,
        tensorrt_flavour=report.flavour,
        tensorrt_version=report.tensorrt_version,
        plugin_library_serialized=library.path in report.plugin_libraries,
        plugin_library_sha256=library.sha256,
        profiles={profile.name.value: _symbolic_ranges(profile, inputs) for profile in report.profiles},
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
