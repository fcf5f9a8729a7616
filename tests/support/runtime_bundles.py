"""Bundles for the CPU runtime: real graph and weights, an engine entry without an engine, so no TensorRT is needed."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from support.checkpoints import tiny_checkpoint

from sala_export.bundle.files import hash_files
from sala_export.bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    EngineEntry,
    Manifest,
    ShardEntry,
)
from sala_export.bundle_entries import describe_graph, describe_model
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.shard_builds import shard_files
from sala_export.onnx.cpu_form import export_cpu_graph
from sala_export.onnx.export import GRAPH_FILE
from sala_export.progress import silent
from sala_export.specs import Precision

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-cpu-bundles-")

_ENGINE = EngineEntry(
    shards=(),
    gpu="none",
    gpu_name="Imaginary GPU 7",
    compute_capability="7.7",
    tensorrt_flavour="rtx",
    tensorrt_version="1.2.3",
    plugin_library_sha256="",
    profiles={},
    device_memory_bytes={},
)


def _shard(layers: int) -> ShardEntry:
    files = shard_files(Path(ENGINE_FOLDER), 0)
    return ShardEntry(
        plan=str(files.plan),
        report=str(files.report),
        log=str(files.log),
        first_layer=0,
        num_layers=layers,
        inputs=(),
        outputs=(),
        plugin_library_serialized=False,
    )


def write_cpu_bundle(source: Path, directory: Path) -> Path:
    """Write the parts of a bundle that the CPU needs for the checkpoint `source`; returns `directory`."""
    checkpoint = Checkpoint.open(source)
    precision = checkpoint.precision or Precision.BF16
    graph = directory / "graph"
    graph.mkdir(parents=True)
    cpu = export_cpu_graph(checkpoint, graph)
    for name, file in checkpoint.shard_files().items():
        shutil.copyfile(file, graph / name)
    shard = _shard(checkpoint.config.num_hidden_layers)
    for name in (shard.plan, shard.report, shard.log, f"{GRAPH_FOLDER}/{GRAPH_FILE}"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("not used by the CPU", encoding="utf-8")
    files = hash_files(directory, [path for path in directory.rglob("*") if path.is_file()], silent, "hash")
    weights = tuple(entry for entry in files if entry.path.endswith(".safetensors"))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="tests",
        model=describe_model(source.name, checkpoint.config, weights),
        precision=precision,
        graph=describe_graph(checkpoint, precision, cpu, weights, included=True),
        engine=replace(_ENGINE, shards=(shard,)),
        text=(),
        files=files,
    )
    (directory / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return directory


@functools.cache
def tiny_cpu_bundle() -> Path:
    """Of the tiny checkpoint, written once per session; shared between tests, so never written to."""
    return write_cpu_bundle(tiny_checkpoint(), Path(_FOLDER.name) / "tiny.sala")
