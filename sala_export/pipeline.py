"""What the commands do: the stages checkpoint -> graph -> engine -> bundle, each run once and in order."""

from __future__ import annotations

import itertools
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .bundle.files import hash_files
from .bundle.manifest import ENGINE_FOLDER, GRAPH_FOLDER, MANIFEST_FILE, SCHEMA_VERSION, TEXT_FOLDER, Manifest
from .bundle.reader import Bundle
from .bundle_entries import LOG_FILE, PLAN_FILE, REPORT_FILE, describe_engine, describe_graph, describe_model
from .checkpoint.config import DEFAULT_MODEL
from .checkpoint.hub import resolve_model
from .checkpoint.reader import TOKENIZER_FILE, Checkpoint
from .engine.build import build_engine
from .engine.host import check_host
from .engine.memory import check_fits, predict_memory
from .engine.report import EngineReport
from .engine.request import EngineRequest
from .errors import BuildError, RequestError
from .kernel_support import require_kernels
from .native_libraries import plugin_library
from .planned_graph import planned_graph
from .progress import Progress, silent
from .specs import Precision
from .staging import MARKER, require_free_path, staged_directory

if TYPE_CHECKING:
    from .onnx.cpu_form import CpuGraph

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """Which model to take, and how much of it."""

    model: str = DEFAULT_MODEL
    """A directory in Hugging Face layout, or a hub id."""
    revision: str | None = None
    layers: int | None = None
    """Take the first so many layers only, with the residual scale of the whole model."""

    @property
    def name(self) -> str:
        """The model's own name, without owner or folders."""
        path = Path(self.model).expanduser()
        return path.resolve().name if path.is_dir() else path.name

    def open(self) -> ModelSource:
        """Find, download if need be, and check the checkpoint.

        Raises: CheckpointError, ConfigError, UnsupportedError or RequestError.
        """
        directory = resolve_model(self.model, self.revision)
        origin = self.name
        if not Path(self.model).expanduser().is_dir():
            # A hub snapshot lies in a folder named after its commit, which says more than a branch.
            origin = f"{self.model}@{directory.name}"
        return ModelSource(checkpoint=Checkpoint.open(directory, layers=self.layers), origin=origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model that was found."""

    checkpoint: Checkpoint
    origin: str
    """How a bundle names it: hub id and commit, or the name of the directory; no path of the machine that built it."""

    def require_outside(self, output: Path) -> None:
        """Refuse an output that holds the checkpoint, which `--force` would delete.

        Raises: RequestError.
        """
        if self.checkpoint.directory.resolve().is_relative_to(output.resolve()):
            raise RequestError(f"{output} holds the checkpoint itself: choose another --output")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """One bundle."""

    model: ModelRequest
    engine: EngineRequest
    output: Path
    copy_weights: bool = False
    include_weights: bool = True
    force: bool = False


def export_onnx(
    request: ModelRequest,
    output: Path,
    precision: Precision,
    *,
    copy_weights: bool = False,
    force: bool = False,
    on_progress: Progress = silent,
) -> None:
    """Write the ONNX graph of a model and its weights as the directory `output`, whole or not at all.

    Raises: InputError for bad input; ExportError if tracing fails.
    """
    from .onnx.export import export_graph

    require_free_path(output, marker=MARKER, force=force)
    source = request.open()
    source.require_outside(output)
    with staged_directory(output, marker=MARKER, force=force) as staging:
        on_progress("trace", 0, 1)
        export_graph(source.checkpoint, staging, precision, copy_weights=copy_weights)
        on_progress("trace", 1, 1)


def build_bundle(request: BuildRequest, on_progress: Progress = silent) -> Bundle:
    """Build an engine and everything around it as the directory `request.output`, whole or not at all.

    Raises: InputError for bad input, before the long work where it can be known; ExportError or BuildError if a stage
    fails.
    """
    require_free_path(request.output, marker=MANIFEST_FILE, force=request.force)
    library = plugin_library()
    source = request.model.open()
    source.require_outside(request.output)
    checkpoint = source.checkpoint
    require_kernels(checkpoint.config, request.engine.precision, request.engine.recipe.compute_capability)
    plan = planned_graph(checkpoint.config, request.engine.precision)
    check_fits(plan, request.engine, predict_memory(plan, request.engine))
    check_host(plan.weights_bytes, request.output.absolute())
    if TOKENIZER_FILE not in checkpoint.accessory_files():
        logger.warning("%s has no %s: the bundle will take token ids, not text", source.origin, TOKENIZER_FILE)
    with staged_directory(request.output, marker=MANIFEST_FILE, force=request.force) as staging:
        graph, text = staging / GRAPH_FOLDER, staging / TEXT_FOLDER
        for folder in (graph, staging / ENGINE_FOLDER, text):
            folder.mkdir()
        cpu = _export(checkpoint, graph, request, on_progress)
        report = _build(request, staging, library, on_progress)
        (staging / ENGINE_FOLDER / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        for name, file in checkpoint.accessory_files().items():
            shutil.copyfile(file, text / name)
        manifest = _manifest(request, source, cpu, report, library, staging, on_progress)
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(request.output)


def _build(request: BuildRequest, staging: Path, library: Path, on_progress: Progress) -> EngineReport:
    """Build the engine. If TensorRT fails, its log outlives the staging directory, and nothing else does."""
    log = staging / ENGINE_FOLDER / LOG_FILE
    try:
        return build_engine(
            request.engine,
            staging / GRAPH_FOLDER,
            staging / ENGINE_FOLDER / PLAN_FILE,
            log_path=log,
            plugin_library=library,
            on_progress=on_progress,
        )
    except BuildError as error:
        kept = _free_name(request.output.with_name(f"{request.output.name}.log"))
        shutil.move(log, kept)
        raise BuildError(str(error).replace(str(log), str(kept))) from error


def _free_name(path: Path) -> Path:
    """`path`, or with the first number that makes it a name nothing has."""
    candidates = itertools.chain([path], (path.with_name(f"{path.name}.{n}") for n in itertools.count(1)))
    return next(candidate for candidate in candidates if not candidate.exists())


def _export(checkpoint: Checkpoint, folder: Path, request: BuildRequest, on_progress: Progress) -> CpuGraph:
    from .onnx.cpu_form import export_cpu_graph
    from .onnx.export import export_graph

    on_progress("trace", 0, 2)
    export_graph(checkpoint, folder, request.engine.precision, copy_weights=request.copy_weights)
    on_progress("trace", 1, 2)
    cpu = export_cpu_graph(checkpoint, folder)
    on_progress("trace", 2, 2)
    return cpu


def _manifest(
    request: BuildRequest,
    source: ModelSource,
    cpu: CpuGraph,
    report: EngineReport,
    library: Path,
    staging: Path,
    on_progress: Progress,
) -> Manifest:
    """Hash what was staged, drop the weights if they are not wanted, and describe the rest."""
    files = hash_files(staging, [p for p in staging.rglob("*") if p.is_file()], on_progress, "hash")
    checkpoint = source.checkpoint
    shards = {f"{GRAPH_FOLDER}/{name}" for name in checkpoint.shard_files()}
    weights = tuple(entry for entry in files if entry.path in shards)
    if not request.include_weights:
        for entry in weights:
            (staging / entry.path).unlink()
        files = tuple(entry for entry in files if entry.path not in shards)
    graph = describe_graph(checkpoint, request.engine.precision, cpu, weights, included=request.include_weights)
    (library_entry,) = hash_files(library.parent, [library], silent, "hash")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"sala-export {__version__}",
        model=describe_model(source.origin, checkpoint.config, weights),
        precision=request.engine.precision,
        graph=graph,
        engine=describe_engine(report, library_entry, graph.inputs),
        text=tuple(entry.path for entry in files if entry.path.startswith(f"{TEXT_FOLDER}/")),
        files=files,
    )
