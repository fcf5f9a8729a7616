"""The entry of the engine stage: builds an engine from a graph."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from .. import errors
from ..errors import BuildError, RequestError, SalaError
from ..progress import ProgressCallback, silent
from .build_log import PROCESS_OUTPUT, parse_build_log, records
from .flavour import select_flavour
from .graph import EngineGraph
from .graph_reader import read_graph
from .host import check_disk, check_memory, plan_bytes
from .job import BuildJob, BuildResult, read_line
from .memory import check_fits, predict_memory
from .profiles import make_profiles
from .report import EngineReport
from .request import EngineRequest

logger = logging.getLogger(__name__)


PLAN_FILE = "engine.plan"
REPORT_FILE = "report.json"
LOG_FILE = "build.log"


def build_engine(
    request: EngineRequest,
    graph: Path,
    plugin_library: Path | None,
    folder: Path,
    *,
    on_progress: ProgressCallback = silent,
) -> EngineReport:
    """Build the engine of a graph as `engine.plan` in `folder`, with `report.json` and `build.log` beside it.

    TensorRT runs in a child process, which ends with this one. Plan and report appear whole or not at all. TensorRT's
    log stays if TensorRT fails.

    Args: `plugin_library` computes this project's operators and becomes part of the plan. None for a graph without any.
    Raises: InputError before anything is written, if the request, the graph, a GPU's memory, this machine's memory or
        its disk do not allow the build. BuildError if TensorRT fails.
    """
    described = read_graph(graph)
    _check(request, described, plugin_library, folder)
    flavour = select_flavour(request.flavour)
    flavour.check(request.target)
    partial = (folder / f"{PLAN_FILE}.partial").absolute()
    job = BuildJob(
        flavour=flavour.name,
        compute_capabilities=tuple(map(str, request.target.compute_capabilities)),
        graph=graph.absolute(),
        plan=partial,
        log=(folder / LOG_FILE).absolute(),
        profiles=make_profiles(described, request),
        plugin_library=plugin_library.absolute() if plugin_library and described.operators else None,
    )
    start = time.monotonic()
    try:
        result = _run_worker(job, on_progress)
        report = _report(request, described, job, result, time.monotonic() - start)
        check_fits(described, request, report.memory)
        report.write(folder / REPORT_FILE)
        partial.replace(folder / PLAN_FILE)
    finally:
        partial.unlink(missing_ok=True)
    logger.info("built %s, %d bytes in %.1f s", folder / PLAN_FILE, report.plan_bytes, report.build_seconds)
    return report


def _check(request: EngineRequest, graph: EngineGraph, plugin_library: Path | None, folder: Path) -> None:
    if graph.activation_dtype is not request.precision.dtype:
        raise RequestError(
            f"{graph.path} computes in {graph.activation_dtype}, but --precision {request.precision} was asked for: "
            f"export it with --precision {request.precision}"
        )
    if graph.operators and plugin_library is None:
        raise RequestError(f"{graph.path} has nodes of domain sala: a plugin library is needed to build it")
    if plugin_library is not None and not plugin_library.is_file():
        raise RequestError(f"{plugin_library} does not exist: build the plugin library first")
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a directory: create it before building an engine there")
    check_fits(graph, request, predict_memory(graph, request))
    check_memory(graph.constant_bytes)
    check_disk(plan_bytes(graph), folder)


def _report(
    request: EngineRequest, graph: EngineGraph, job: BuildJob, result: BuildResult, seconds: float
) -> EngineReport:
    log = parse_build_log(job.log, len(job.profiles))
    wanted = (job.plugin_library.name,) if job.plugin_library else ()
    if log.plugin_libraries != wanted:
        raise BuildError(f"{job.log}: the plan holds the plugin libraries {log.plugin_libraries}, expected {wanted}")
    if result.compute_capabilities != job.compute_capabilities:
        built, asked = ", ".join(result.compute_capabilities), ", ".join(job.compute_capabilities)
        raise BuildError(f"{job.log}: TensorRT built for {built}, asked was {asked}")
    predicted = predict_memory(graph, request)
    report = EngineReport(
        flavour=job.flavour,
        tensorrt_version=result.tensorrt_version,
        target=request.target.name,
        gpus=tuple(recipe.gpu for recipe in request.target.gpus),
        compute_capabilities=result.compute_capabilities,
        precision=request.precision,
        max_context=request.max_context,
        prefill_chunk=request.prefill_chunk,
        max_batch=request.max_batch,
        profiles=job.profiles,
        inputs=graph.inputs,
        weights=graph.weights,
        outputs=graph.outputs,
        operators=graph.operators + graph.product_operators,
        layers=log.layers,
        activation_bytes=log.activation_bytes,
        constant_bytes=log.constant_bytes,
        plugin_libraries=log.plugin_libraries,
        memory=replace(
            predicted,
            weights_bytes=graph.input_weights_bytes + log.constant_bytes,
            activation_bytes=max(log.activation_bytes),
        ),
        parameters=graph.parameters,
        quantized_parameters=graph.quantized_parameters,
        plan_bytes=result.plan_bytes,
        build_seconds=seconds,
        peak_host_bytes=result.peak_host_bytes,
    )
    _check_operators(report, job.log)
    return report


def _check_operators(report: EngineReport, log: Path) -> None:
    for index, profile in enumerate(report.profiles):
        computed = [name for names in report.operator_layers(index).values() for name in names]
        missing = [operator.name for operator in report.operators if operator.name not in computed]
        if missing:
            raise BuildError(f"{log}: no plugin layer of the {profile.name} profile computes {', '.join(missing)}")


def _run_worker(job: BuildJob, on_progress: ProgressCallback) -> BuildResult:
    """Run a job in a child process. Raises: what the worker raised, or BuildError if it died."""
    job.log.write_bytes(b"")
    # A file without a name: nothing of it is left, however this ends.
    with tempfile.TemporaryFile() as output:
        status, result = _spawn(job, output, on_progress)
        _append_output(job.log, output)
    if status != 0 or result is None:
        raise BuildError(f"the build process {_how_it_ended(status)}; last of {job.log}: {_last_lines(job.log)}")
    if result.error_type:
        error: type[SalaError] = getattr(errors, result.error_type)
        raise error(f"{result.error} (log: {job.log})" if error is BuildError else result.error)
    return result


def _spawn(job: BuildJob, output: IO[bytes], on_progress: ProgressCallback) -> tuple[int, BuildResult | None]:
    """Run the worker to its end, passing on its progress; returns its exit status, and its result if it gave one."""
    reading, writing = os.pipe()
    result = None
    with os.fdopen(reading, encoding="utf-8") as pipe:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the worker in `finally`.
        worker = subprocess.Popen(
            # -P: modules come from the installation, not from whatever lies in the current directory.
            [sys.executable, "-P", "-m", f"{__package__}.worker", str(writing), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
        )
        try:
            os.close(writing)
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError), worker.stdin as stdin:  # its exit status will tell
                stdin.write(job.to_json())
            for line in pipe:
                told = read_line(line)
                if isinstance(told, BuildResult):
                    result = told
                else:
                    on_progress(*told)
            return worker.wait(), result
        finally:
            worker.kill()
            worker.wait()


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    hint = ", perhaps by the kernel for want of memory" if -status == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def _append_output(log: Path, output: IO[bytes]) -> None:
    """Append the output of the process itself to the log, for example the last words of a native library."""
    output.seek(0)
    lines = output.read().decode("utf-8", errors="replace").splitlines()
    with log.open("a", encoding="utf-8") as file:
        file.writelines(f"[{PROCESS_OUTPUT}] {line}\n" for line in lines)


def _last_lines(log: Path) -> str:
    """The end of a log in one line: errors and the process's own words if there are any."""
    told = [entry for entry in records(log.read_text(encoding="utf-8", errors="replace")) if entry[0] != "VERBOSE"]
    grave = [entry for entry in told if entry[0] == PROCESS_OUTPUT or entry[0].endswith("ERROR")]
    return " | ".join(" ".join(message.split()) for _, message in (grave or told)[-3:]) or "nothing was logged"
