"""Bundles for the CPU runtime: real graph and weights, an engine entry without an engine, so no TensorRT is needed."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from support.checkpoints import tiny_checkpoint

from sala_export.building.bundle_entries import describe_graph, describe_model, describe_weights
from sala_export.bundle.hashing import Hashing, hash_files, tensor_spans
from sala_export.bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    EngineEntry,
    GpuEntry,
    Manifest,
    Range,
)
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.signature import SYMBOLIC_DIMENSIONS, signature
from sala_export.onnx.cpu_form import export_cpu_graph
from sala_export.onnx.export import GRAPH_FILE
from sala_export.progress import silent
from sala_export.specs import Precision

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-cpu-bundles-")

_RANGES = {name: Range(min=1, opt=1, max=1024) for name in SYMBOLIC_DIMENSIONS}
_ENGINE = EngineEntry(
    plan=f"{ENGINE_FOLDER}/engine.plan",
    report=f"{ENGINE_FOLDER}/report.json",
    log=f"{ENGINE_FOLDER}/build.log",
    graph=f"{ENGINE_FOLDER}/engine.onnx",
    weights=(),
    target="imaginary",
    gpus=(
        GpuEntry(
            recipe="imaginary",
            name="Imaginary GPU 7",
            compute_capability="7.7",
            memory_bytes=1 << 30,
            reserve_bytes=0,
            max_context=1024,
        ),
    ),
    compute_capabilities=("7.7",),
    tensorrt_flavour="rtx",
    tensorrt_version="1.2.3",
    plugin_library_sha256="0" * 64,
    profiles={"prefill": _RANGES, "decode": _RANGES},
    device_memory_bytes={},
)


def write_cpu_bundle(source: Path, directory: Path, *, include_weights: bool = True) -> Path:
    """Write the parts of a bundle that the CPU needs for the checkpoint `source`; returns `directory`."""
    checkpoint = Checkpoint.open(source)
    precision = checkpoint.precision or Precision.BF16
    graph = directory / GRAPH_FOLDER
    graph.mkdir(parents=True)
    cpu = export_cpu_graph(checkpoint, graph, precision)
    for name in (*(_ENGINE.plan, _ENGINE.report, _ENGINE.log, _ENGINE.graph), f"{GRAPH_FOLDER}/{GRAPH_FILE}"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("not used by the CPU", encoding="utf-8")
    files = hash_files(directory, [path for path in directory.rglob("*") if path.is_file()], silent)
    for name, file in checkpoint.shard_files().items() if include_weights else ():
        for _ in file.copied(graph / name):
            pass
    digests = tensor_digests(checkpoint)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="tests",
        model=describe_model(source.name, checkpoint.config, digests),
        precision=precision,
        weights=describe_weights(checkpoint, digests, (), included=include_weights),
        graph=describe_graph(checkpoint.config, signature(checkpoint.config, precision.dtype), cpu),
        engine=_ENGINE,
        text=(),
        files=files,
    )
    (directory / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return directory


def tensor_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of every tensor, by name."""
    with Hashing(tensor_spans(checkpoint)) as hashing:
        return hashing.result(silent)


@functools.cache
def tiny_cpu_bundle() -> Path:
    """Of the tiny checkpoint, written once per session; shared between tests, so never written to."""
    return write_cpu_bundle(tiny_checkpoint(), Path(_FOLDER.name) / "tiny.sala")
