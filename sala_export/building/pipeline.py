"""Runs the stages checkpoint -> graph -> engine -> bundle for the commands, each once and in order."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.hashing import Hashing, Span, hash_files
from ..bundle.manifest import (
    ENGINE_FOLDER,
    GRAPH_FOLDER,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    TEXT_FOLDER,
    EngineEntry,
    Manifest,
)
from ..bundle.reader import Bundle
from ..checkpoint.config import SalaConfig
from ..checkpoint.float_types import convert_weights
from ..checkpoint.quantization import Quantization
from ..checkpoint.reader import Checkpoint
from ..checkpoint.tensor_location import TensorFile
from ..engine.build import LOG_FILE, build_engine
from ..engine.flavour import select_flavour
from ..engine.graph import EngineGraph
from ..engine.host import check_disk, check_memory, plan_bytes
from ..engine.memory import check_fits
from ..engine.request import EngineRequest
from ..errors import BuildError, CheckpointError, RequestError
from ..files import OpenedFile
from ..installation import VERSION, plugin_library
from ..progress import ProgressCallback, silent
from ..runtime.chat_check import chat_faults
from ..specs import QUANTIZED_PRECISIONS, TOKENIZER_FILE, Precision, one_of
from ..staging import MARKER, require_free_path, staged_directory
from .bundle_entries import BuiltGraphs, describe_engine, describe_graph, describe_model, describe_weights
from .kernel_support import require_kernels
from .planned_graph import planned_graph, planned_memory
from .requests import BuildRequest, CpuRequest, ModelRequest, OpenedCheckpoint

if TYPE_CHECKING:
    from ..calibration.layer import QuantizationRecipe
    from ..calibration.quantize import QuantizeResult
    from ..calibration.samples import SampleRequest

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Shows a line to people."""


def export_onnx(
    request: ModelRequest,
    output: Path,
    precision: Precision,
    *,
    may_round: bool = False,
    link_weights: bool = False,
    force: bool = False,
    on_progress: ProgressCallback = silent,
) -> None:
    """Write the ONNX graph of a model and its weights as the directory `output`, whole or not at all.

    Args: `may_round`: as that of `BuildRequest`.
    Raises: InputError for bad input.
    """
    from ..onnx.export import export_graph

    require_free_path(output, marker=MARKER, force=force)
    request.require_precision(precision)
    source = request.open()
    source.require_outside(output)
    convert_weights(source.checkpoint, precision, may_round=may_round)
    with staged_directory(output, marker=MARKER, force=force) as staging:
        export_graph(source.checkpoint, staging, precision, link_weights=link_weights, on_progress=on_progress)
        source.checkpoint.require_unchanged()


def quantize_model(
    request: ModelRequest,
    recipe: QuantizationRecipe,
    samples: SampleRequest,
    output: Path,
    *,
    force: bool = False,
    on_progress: ProgressCallback = silent,
) -> QuantizeResult:
    """Quantise a model as the directory `output`, whole or not at all. The next run continues an interrupted one.

    Raises: InputError for bad input.
    """
    from ..calibration.quantize import quantize_checkpoint

    _require_use(recipe, samples)
    require_free_path(output, marker=MARKER, force=force)
    source = request.open()
    source.require_outside(output)
    return quantize_checkpoint(source.checkpoint, recipe, samples, output, force=force, on_progress=on_progress)


def quantize_for_build(
    request: BuildRequest, calibration: Path | None, say: Say, on_progress: ProgressCallback = silent
) -> BuildRequest:
    """Quantise the model of `request` by the best algorithm of its precision. Returns the request to build the result.

    The quantised checkpoint is written beside the bundle as MODEL-PRECISION and stays there, for other GPUs.

    Args: `calibration`: a file of text samples, or None for the text that ships with the package. `say` gets lines for
        people.
    Raises: RequestError if the precision is not a quantised one, or the checkpoint exists already. Otherwise as
        `quantize_model`.
    """
    from ..calibration.layer import QuantizationRecipe
    from ..calibration.samples import SampleRequest

    precision = request.engine.precision
    if not precision.is_quantized:
        choices = one_of(QUANTIZED_PRECISIONS)
        raise RequestError(f"--calibration: a bundle in {precision} needs none; choose --precision {choices}")
    require_free_path(request.output, marker=MANIFEST_FILE, force=request.force)
    quantised = request.output.parent / f"{request.model.name}-{precision}"
    if quantised.exists():
        raise RequestError(f"{quantised} exists: build it with --model {quantised}, or remove it to quantise again")
    recipe, samples = QuantizationRecipe.from_options(precision), SampleRequest(file=calibration, say=say)
    _require_use(recipe, samples)
    # Before gigabytes are fetched, and hours of work.
    _planned(request.engine, request.model.config(), None)
    say(f"quantising {request.model.name} to {precision} first, as the checkpoint {quantised}")
    quantize_model(request.model, recipe, samples, quantised, on_progress=on_progress)
    return replace(request, model=ModelRequest(model=str(quantised), layers=request.model.layers))


def _require_use(recipe: QuantizationRecipe, samples: SampleRequest) -> None:
    """Raises: RequestError for a choice of samples where none are needed."""
    if not recipe.needs_samples:
        samples.require_empty(recipe.precision)


def build_bundle(request: BuildRequest, on_progress: ProgressCallback = silent) -> Bundle:
    """Build a bundle, with an engine if one is asked for, as the directory `request.output`, whole or not at all.

    Raises: InputError for bad input, before the long work where possible. ExportError or BuildError if a stage
    fails.
    """
    require_free_path(request.output, marker=MANIFEST_FILE, force=request.force)
    # Before gigabytes are fetched.
    request.model.require_precision(request.engine.precision)
    _planned(request.engine, request.model.config(), request.model.stored_quantization())
    source = request.model.open()
    source.require_outside(request.output)
    plan, texts = _check(request, source.checkpoint), source.checkpoint.text_files()
    convert_weights(source.checkpoint, request.engine.precision, may_round=request.may_round)
    if TOKENIZER_FILE not in texts:
        logger.warning("%s has no %s: the bundle will take token ids, not text", source.origin, TOKENIZER_FILE)
    for fault in chat_faults(texts):
        logger.warning("%s", fault)
    with staged_directory(request.output, marker=MANIFEST_FILE, force=request.force) as staging:
        for folder in (GRAPH_FOLDER, TEXT_FOLDER):
            (staging / folder).mkdir()
        placed = _place_weights(request, source.checkpoint, plan, staging, on_progress)
        # The hashes take as long as the engine, on other processors than TensorRT's.
        with Hashing(_spans(source.checkpoint, placed, staging)) as hashing:
            graphs = _export(request, source.checkpoint, staging, placed, on_progress)
            engine = _build(request, plan, staging, graphs, hashing.watched(on_progress))
            digests = hashing.result(on_progress)
        source.checkpoint.require_hashes(digests)
        source.checkpoint.require_unchanged()
        for name, file in texts.items():
            path = staging / TEXT_FOLDER / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file.content)
        manifest = _manifest(request, source, graphs, engine, digests, staging)
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(request.output)


def _check(request: BuildRequest, checkpoint: Checkpoint) -> EngineGraph | None:
    """Refuse what cannot be built of the checkpoint or would not fit its GPU. Returns: as `_planned`."""
    checkpoint.require_precision(request.engine.precision)
    converted = [file for file in checkpoint.shard_files().values() if not isinstance(file, OpenedFile)]
    if converted and not request.include_weights:
        raise RequestError(
            f"--no-weights: {checkpoint.directory} has its weights in another order than graphs take, and only a "
            "bundle holds them in theirs: build with the weights"
        )
    return _planned(request.engine, checkpoint.config, checkpoint.quantization)


def _planned(
    engine: EngineRequest | CpuRequest, config: SalaConfig, quantization: Quantization | None
) -> EngineGraph | None:
    """The engine's graph as it will be, from config.json alone. Refuses what cannot be built or would not fit."""
    if isinstance(engine, CpuRequest):
        planned_graph(config, engine.precision, quantization)  # refuses sizes that cannot be quantised
        return None
    select_flavour(engine.flavour).check(engine.target)
    for capability in engine.target.compute_capabilities:
        require_kernels(config, engine.precision, capability, plugin_library())
    graph = planned_graph(config, engine.precision, quantization)
    check_fits(graph, engine, planned_memory(graph, config, engine))
    check_memory(graph.constant_bytes)
    return graph


def _place_weights(
    request: BuildRequest,
    checkpoint: Checkpoint,
    graph: EngineGraph | None,
    staging: Path,
    on_progress: ProgressCallback,
) -> dict[TensorFile, str]:
    """Put the weight files beside the graph, if the bundle is to have them; returns their names there."""
    from ..onnx.weights import copy_weights, share_weights

    folder, files = staging / GRAPH_FOLDER, {where.file for where in checkpoint.tensors().values()}
    copies = share_weights(files, folder, link=request.link_weights) if request.include_weights else []
    # Constants lie beside the graph while TensorRT reads them into the plan.
    engine_bytes = plan_bytes(graph) + graph.constant_bytes if graph else 0
    check_disk(engine_bytes + sum(file.size for file in copies), staging)
    copy_weights(copies, folder, link=request.link_weights, on_progress=on_progress)
    return {file: file.path.name for file in files}


def _spans(checkpoint: Checkpoint, placed: dict[TensorFile, str], staging: Path) -> dict[str, Span]:
    """The tensors of the weights, by name: in the bundle's own copies if there are any, else where messages name them
    as the user does."""

    def hashed(file: TensorFile, name: str) -> TensorFile:
        own = staging / GRAPH_FOLDER / name
        copied = own.exists() and not file.is_at(own.stat())
        return OpenedFile.open(own, error=CheckpointError) if copied else file

    files = {file: hashed(file, name) for file, name in placed.items()}
    return {name: Span(files[where.file], where.offset, where.length) for name, where in checkpoint.tensors().items()}


def _export(
    request: BuildRequest,
    checkpoint: Checkpoint,
    staging: Path,
    placed: dict[TensorFile, str],
    on_progress: ProgressCallback,
) -> BuiltGraphs:
    """Write the forms of the step's graph, that of the engine only if there will be one."""
    from ..onnx.cpu_form import export_cpu_graph
    from ..onnx.engine_form import export_engine_graph
    from ..onnx.export import write_graph

    graph, precision = staging / GRAPH_FOLDER, request.engine.precision
    has_engine = isinstance(request.engine, EngineRequest)
    forms = 3 if has_engine else 2
    on_progress("graph", 0, forms)
    step = write_graph(checkpoint, graph, precision, placed)
    on_progress("graph", 1, forms)
    cpu = export_cpu_graph(checkpoint, graph, precision)
    on_progress("graph", 2, forms)
    engine = None
    if has_engine:
        (staging / ENGINE_FOLDER).mkdir()
        engine = export_engine_graph(checkpoint, staging / ENGINE_FOLDER, precision)
        on_progress("graph", 3, forms)
    return BuiltGraphs(step=step, cpu=cpu, engine=engine)


def _build(
    request: BuildRequest,
    plan: EngineGraph | None,
    staging: Path,
    graphs: BuiltGraphs,
    on_progress: ProgressCallback,
) -> EngineEntry | None:
    """Build the engine, if one is asked for. If TensorRT fails, its log outlives the staging directory."""
    engine, written = request.engine, graphs.engine
    if isinstance(engine, CpuRequest):
        return None
    assert plan is not None
    assert written is not None
    from ..onnx.engine_form import ENGINE_GRAPH_FILE

    folder, library = staging / ENGINE_FOLDER, plugin_library()
    graph = folder / ENGINE_GRAPH_FILE
    try:
        report = build_engine(engine, graph, library, folder, on_progress=on_progress)
    except BuildError as error:
        log = folder / LOG_FILE
        if not log.is_file():
            raise
        kept = _free_name(request.output.with_name(f"{request.output.name}.log"))
        shutil.move(log, kept)
        raise BuildError(str(error).replace(str(log), str(kept))) from error
    finally:
        written.remove_constants(graph)
    (entry,) = hash_files(library.parent, [library], silent)
    return describe_engine(plan, engine, written, report, entry.sha256)


def _free_name(path: Path) -> Path:
    """`path`, or with the first number that makes it a name nothing has."""
    candidates = itertools.chain([path], (path.with_name(f"{path.name}.{n}") for n in itertools.count(1)))
    return next(candidate for candidate in candidates if not candidate.exists())


def _manifest(
    request: BuildRequest,
    source: OpenedCheckpoint,
    graphs: BuiltGraphs,
    engine: EngineEntry | None,
    digests: dict[str, str],
    staging: Path,
) -> Manifest:
    checkpoint, constants = source.checkpoint, graphs.engine.constants if graphs.engine else ()
    weight_files = {staging / GRAPH_FOLDER / name for name in checkpoint.shard_files()}
    others = [path for path in staging.rglob("*") if path.is_file() and path not in weight_files]
    files = hash_files(staging, others, silent)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"sala-export {VERSION}",
        model=describe_model(source.origin, checkpoint.config, digests),
        precision=request.engine.precision,
        weights=describe_weights(checkpoint, digests, constants, included=request.include_weights),
        graph=describe_graph(checkpoint.config, graphs.step, graphs.cpu),
        engine=engine,
        text=tuple(entry.path for entry in files if entry.path.startswith(f"{TEXT_FOLDER}/")),
        files=files,
    )
