"""Builds one engine in the process that calls it, for both TensorRTs.

The worker process builds with it. Polygraphy's loaders take the same configuration (`interop/polygraphy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import BuildError
from ..progress import ProgressCallback
from ..specs import ComputeCapability
from .flavour import Flavour
from .job import BuildJob
from .profiles import Profile

_REPORTED_DEPTH = 2
"""Nesting of TensorRT's phases that is passed on: deeper ones are many and short."""


def build_plan(
    flavour: Flavour, trt: Any, job: BuildJob, log: TextIO, progress: ProgressCallback
) -> tuple[int, tuple[ComputeCapability, ...]]:
    """Build the engine of a job and write its plan. Returns the plan's size and the targets that TensorRT states.

    Raises: BuildError with what TensorRT reported, UnsupportedError for an unknown target, OSError if log or plan
        cannot be written.
    """
    logger = _logger(trt, log, [file.parent for file in (job.graph, job.plugin_library) if file])
    builder = trt.Builder(logger)
    if job.plugin_library is not None and not load_plugins(trt, job.plugin_library):
        raise BuildError(f"TensorRT cannot load {job.plugin_library}: {logger.last_errors()}")
    progress("Parsing graph", 0, 1)
    network = _parse(trt, builder, logger, job.graph)
    progress("Parsing graph", 1, 1)
    config = make_config(
        flavour,
        trt,
        builder,
        compute_capabilities=job.compute_capabilities,
        profiles=job.profiles,
        plugin_library=job.plugin_library,
    )
    # The configuration does not keep the monitor alive.
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if logger.write_error is not None:
        raise logger.write_error
    if plan is None:
        raise BuildError(f"{flavour.title} {trt.__version__} cannot build {job.graph.name}: {logger.last_errors()}")
    progress("Writing plan", 0, 1)
    job.plan.write_bytes(plan)
    progress("Writing plan", 1, 1)
    return int(plan.nbytes), flavour.targets(config)


def load_plugins(trt: Any, library: Path) -> bool:
    """Register the plugins of a library. Call it after a builder is made, which gives the registry its logger.

    Returns: False if TensorRT refuses the library, which its log explains.
    """
    return trt.get_plugin_registry().load_library(str(library)) is not None


def make_config(
    flavour: Flavour,
    trt: Any,
    builder: Any,
    *,
    compute_capabilities: Sequence[str],
    profiles: Sequence[Profile],
    plugin_library: Path | None,
) -> Any:
    """Make the builder configuration of an engine, whose plan will carry `plugin_library`.

    Raises: BuildError, UnsupportedError for an unknown target.
    """
    config = builder.create_builder_config()
    flavour.set_targets(trt, config, [ComputeCapability.parse(text) for text in compute_capabilities])
    # With auxiliary streams, products whose weights are inputs go to one of them, between signals that cost time.
    config.max_aux_streams = 0
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if plugin_library is not None:
        config.plugins_to_serialize = [str(plugin_library)]
    for profile in profiles:
        _add_profile(builder, config, profile)
    return config


def _parse(trt: Any, builder: Any, logger: Any, graph: Path) -> Any:
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    # From the file, not from bytes: the parser looks for external weights beside it.
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(_parser_error(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(f"TensorRT cannot read {graph.name}: {errors or logger.last_errors()}")
    return network


def _parser_error(error: Any) -> str:
    description = " ".join(error.desc().split())
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    return where + description


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for shape in profile.inputs:
        shapes.set_shape(shape.name, shape.min, shape.opt, shape.max)
    if config.add_optimization_profile(shapes) < 0:
        raise BuildError(f"TensorRT refuses the {profile.name} profile: {profile.inputs}")


def _logger(trt: Any, log: TextIO, folders: list[Path]) -> Any:
    """A logger that writes every message to `log`, without the names of `folders`, and remembers the errors.

    The log is part of a bundle, which goes to other machines: files are named there without where they were here.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.write_error: OSError | None = None

        def log(self, severity: Any, message: str) -> None:
            for folder in folders:
                message = message.replace(f"{folder}/", "")
            try:
                log.write(f"[{severity.name}] {message}\n")
            except OSError as error:
                # Raised after the build: an exception in a callback would end the process without a word.
                self.write_error = self.write_error or error
            # Without a driver, TensorRT follows every error with one about the missing driver.
            if severity.name.endswith("ERROR") and "catchCudaError" not in message:
                self.errors.append(" ".join(message.split()))

        def last_errors(self) -> str:
            return "; ".join(self.errors[-3:]) or "no error was logged"

    return Logger()


def _monitor(trt: Any, progress: ProgressCallback) -> Any:
    """A progress monitor that passes on the outer phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.open: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.open[name] = steps
            self.report(name, 0)

        def step_complete(self, name: str, step: int) -> bool:
            self.report(name, step + 1)
            return True

        def phase_finish(self, name: str) -> None:
            self.open.pop(name, None)

        def report(self, name: str, done: int) -> None:
            # Neither the root phase, open all the time, nor those of one step, which only hold other phases.
            if 0 < list(self.open).index(name) <= _REPORTED_DEPTH and self.open[name] > 1:
                progress(name, done, self.open[name])

    return Monitor()
