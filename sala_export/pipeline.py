"""What the commands do: the stages checkpoint -> graph -> engine -> bundle, each run once and in order."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .bundle.files import hash_files
from .bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    TEXT_FOLDER,
    EngineEntry,
    FileEntry,
    Manifest,
)
from .bundle.reader import Bundle
from .bundle_entries import describe_engine, describe_graph, describe_model
from .checkpoint.config import DEFAULT_MODEL, SalaConfig
from .checkpoint.hub import resolve_model
from .checkpoint.quantization import read_quantization
from .checkpoint.reader import CONFIG_FILE, TOKENIZER_FILE, Checkpoint
from .engine.flavour import installed_version, select_flavour
from .engine.graph import GRAPH_FILE, EngineGraph
from .engine.host import check_disk, check_memory, host_budget
from .engine.memory import check_fits
from .engine.report import EngineReport
from .engine.request import EngineRequest
from .engine.shard_builds import ShardBuilds, clear_unfinished, finished_shards, kept_shards, records, shard_files
from .engine.sharding import ShardRange, choose_shards, equal_shards
from .errors import BuildError, RequestError
from .kernel_support import require_kernels
from .native_libraries import plugin_library
from .planned_graph import planned_graph, planned_memory
from .progress import Progress, silent
from .specs import Precision
from .staging import MARKER, Staging, require_free_path, resumable_directory, staged_directory

if TYPE_CHECKING:
    from .calibration.layer import Recipe
    from .calibration.quantize import QuantizeResult
    from .calibration.samples import SampleRequest
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

    def stored_precision(self) -> Precision | None:
        """In which the model is quantised, from its config.json alone; None if it is not.

        Raises: ConfigError, UnsupportedError or CheckpointError.
        """
        quantization = read_quantization(self._config_file())
        return quantization.precision if quantization else None

    def _config_file(self) -> Path:
        return resolve_model(self.model, self.revision, config_only=True) / CONFIG_FILE

    def open(self) -> ModelSource:
        """Find, download if need be, and check the checkpoint.

        Raises: CheckpointError, ConfigError, UnsupportedError or RequestError.
        """
        # Judged before gigabytes are fetched.
        SalaConfig.from_file(self._config_file())
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
    shards: int | None = None
    """Engines to cut the model into; None: as few as `host_memory_bytes` allows."""
    host_memory_bytes: int | None = None
    """Resident memory that the build may take at its peak; None: a part of what is free."""
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


def quantize_model(
    request: ModelRequest,
    recipe: Recipe,
    samples: SampleRequest,
    output: Path,
    *,
    force: bool = False,
    on_progress: Progress = silent,
) -> QuantizeResult:
    """Quantise a model as the directory `output`, whole or not at all; an interrupted run is taken up by the next.

    Raises: InputError for bad input.
    """
    from .calibration.quantize import quantize_checkpoint

    require_free_path(output, marker=MARKER, force=force)
    source = request.open()
    source.require_outside(output)
    return quantize_checkpoint(source.checkpoint, recipe, samples, output, force=force, on_progress=on_progress)


def quantize_for_build(request: BuildRequest, samples: SampleRequest, on_progress: Progress = silent) -> BuildRequest:
    """Quantise the model of `request` first, by the best algorithm of its precision; returns the build of the result.

    The quantised checkpoint is written beside the bundle as MODEL-PRECISION and stays there, for other GPUs.

    Raises: RequestError if the precision is none of a quantised model, or the checkpoint is there already; else as
        `quantize_model`.
    """
    from .calibration.layer import Recipe

    precision = request.engine.precision
    if not precision.is_quantized:
        raise RequestError(
            f"--calibration: an engine in {precision} needs none; choose --precision fp8, int8, int4 or nvfp4"
        )
    require_free_path(request.output, marker=MANIFEST_FILE, force=request.force)
    quantised = request.output.parent / f"{request.model.name}-{precision}"
    if quantised.exists():
        raise RequestError(f"{quantised} exists: build it with --model {quantised}, or remove it to quantise again")
    recipe = Recipe.from_options(precision)
    quantize_model(request.model, recipe, samples, quantised, on_progress=on_progress)
    return replace(request, model=ModelRequest(model=str(quantised), layers=request.model.layers))


def build_bundle(request: BuildRequest, on_progress: Progress = silent) -> Bundle:
    """Build an engine and everything around it as the directory `request.output`, whole or not at all.

    A model too large for this machine is built as several engines of consecutive layers. If such a build ends early,
    the engines that it finished stay beside `request.output`, and the same request goes on with them.

    Raises: InputError for bad input, before the long work where it can be known; ExportError or BuildError if a stage
    fails.
    """
    require_free_path(request.output, marker=MANIFEST_FILE, force=request.force)
    library = plugin_library()
    source = request.model.open()
    source.require_outside(request.output)
    checkpoint = source.checkpoint
    checkpoint.require_precision(request.engine.precision)
    require_kernels(checkpoint.config, request.engine.precision, request.engine.recipe.compute_capability)
    plan = planned_graph(checkpoint.config, request.engine.precision, checkpoint.quantization)
    shards = _choose_shards(request, plan)
    predicted = planned_memory(checkpoint.config, request.engine, len(shards), checkpoint.quantization)
    check_fits(plan, request.engine, predicted)
    if TOKENIZER_FILE not in checkpoint.accessory_files():
        logger.warning("%s has no %s: the bundle will take token ids, not text", source.origin, TOKENIZER_FILE)
    key = _resume_key(request, checkpoint, library)
    with resumable_directory(request.output, marker=MANIFEST_FILE, force=request.force, key=key) as staging:
        engine_folder = _prepare(staging)
        shards = kept_shards(engine_folder) or shards
        graph, text = staging.path / GRAPH_FOLDER, staging.path / TEXT_FOLDER
        from .onnx.quantized_runs import checkpoint_runs, rewritten_bytes
        from .onnx.weights import copied_bytes

        copied = copied_bytes(checkpoint.shard_files().values(), graph, copy=request.copy_weights)
        copied += rewritten_bytes(checkpoint_runs(checkpoint))
        check_disk(plan.weights_bytes - _bytes_in(engine_folder) + copied, len(shards), staging.path)
        cpu = _export(checkpoint, graph, request, on_progress)
        reports = _build(request, staging, shards, library, on_progress)
        for name, file in checkpoint.accessory_files().items():
            shutil.copyfile(file, text / name)
        engine = describe_engine(
            tuple(zip(shards, reports, strict=True)),
            library=_entry(library),
            predicted=planned_memory(checkpoint.config, request.engine, len(shards), checkpoint.quantization),
        )
        manifest = _manifest(request, source, cpu, engine, staging.path, on_progress)
        for record in records(engine_folder):
            record.unlink()
        (staging.path / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(request.output)


def _choose_shards(request: BuildRequest, plan: EngineGraph) -> tuple[ShardRange, ...]:
    """Raises: RequestError if the number asked for is impossible, or a shard does not fit this machine's memory."""
    if request.shards is not None:
        shards = equal_shards(plan.layer_weights_bytes, request.shards)
        check_memory(max(shard.weights_bytes for shard in shards))
        return shards
    return choose_shards(plan.layer_weights_bytes, request.host_memory_bytes or host_budget())


def _resume_key(request: BuildRequest, checkpoint: Checkpoint, library: Path) -> str:
    """Stands for everything that decides what the engines will be, but how much memory is free at the moment."""
    decisive = {
        "program": __version__,
        "tensorrt": installed_version(select_flavour(request.engine.flavour)),
        "engine": asdict(request.engine),
        "shards": request.shards,
        "host_memory_bytes": request.host_memory_bytes,
        "config": asdict(checkpoint.config),
        "weights": {
            name: (file.stat().st_size, file.stat().st_mtime_ns) for name, file in checkpoint.shard_files().items()
        },
        "plugin_library": _entry(library).sha256,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _prepare(staging: Staging) -> Path:
    """Make the folders of a bundle; of an earlier build only its finished engines stay. Returns the engine folder."""
    engine_folder = staging.path / ENGINE_FOLDER
    for folder in (staging.path / GRAPH_FOLDER, staging.path / TEXT_FOLDER):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    if staging.resumed:
        logger.info("going on with the engines that an earlier build left in %s", staging.path)
        clear_unfinished(engine_folder)
    else:
        engine_folder.mkdir()
    return engine_folder


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _build(
    request: BuildRequest, staging: Staging, shards: tuple[ShardRange, ...], library: Path, on_progress: Progress
) -> tuple[EngineReport, ...]:
    """Build the engines. If TensorRT fails, its log outlives the staging directory."""
    from .onnx.shards import write_shard

    graph = staging.path / GRAPH_FOLDER
    builds = ShardBuilds(
        request=request.engine,
        graph_dir=graph,
        folder=staging.path / ENGINE_FOLDER,
        shards=shards,
        plugin_library=library,
        cut=lambda shard, path: write_shard(graph / GRAPH_FILE, shard.first_layer, shard.num_layers, path),
        on_progress=on_progress,
        on_first_finished=staging.keep,
    )
    try:
        return builds.run()
    except BuildError as error:
        raise BuildError(_with_log_kept(str(error), builds, request.output)) from error
    finally:
        if staging.is_kept and len(finished_shards(builds.folder)) < len(shards):
            logger.warning(
                "%d of %d shards are finished and kept for the next build of %s with the same options; any other build "
                "of it, or deleting %s, removes them",
                len(finished_shards(builds.folder)),
                len(shards),
                request.output,
                staging.path,
            )


def _with_log_kept(message: str, builds: ShardBuilds, output: Path) -> str:
    """Move the log that a message names to a place beside the bundle; returns the message with that place."""
    for index in range(len(builds.shards)):
        log = shard_files(builds.folder, index).log
        if str(log) in message and log.is_file():
            kept = _free_name(output.with_name(f"{output.name}.log"))
            shutil.move(log, kept)
            return message.replace(str(log), str(kept))
    return message


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
    engine: EngineEntry,
    staging: Path,
    on_progress: Progress,
) -> Manifest:
    """Hash what was staged, drop the weights if they are not wanted, and describe the rest."""
    from .onnx.quantized_runs import PACKED_FILE

    passing = records(staging / ENGINE_FOLDER)
    staged = [path for path in staging.glob("*/**/*") if path.is_file() and path not in passing]
    files = hash_files(staging, staged, on_progress, "hash")
    checkpoint = source.checkpoint
    shards = {f"{GRAPH_FOLDER}/{name}" for name in (*checkpoint.shard_files(), PACKED_FILE)}
    weights = tuple(entry for entry in files if entry.path in shards)
    if not request.include_weights:
        for entry in weights:
            (staging / entry.path).unlink()
        files = tuple(entry for entry in files if entry.path not in shards)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"sala-export {__version__}",
        model=describe_model(source.origin, checkpoint.config, weights),
        precision=request.engine.precision,
        graph=describe_graph(checkpoint, request.engine.precision, cpu, weights, included=request.include_weights),
        engine=engine,
        text=tuple(entry.path for entry in files if entry.path.startswith(f"{TEXT_FOLDER}/")),
        files=files,
    )


def _entry(file: Path) -> FileEntry:
    (entry,) = hash_files(file.parent, [file], silent, "hash")
    return entry
