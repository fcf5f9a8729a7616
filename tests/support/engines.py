"""A finished build of a mini graph, for tests that look at engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sala_export.engine.build import PLAN_FILE, build_engine
from sala_export.engine.recipe import load_target
from sala_export.engine.report import EngineReport
from sala_export.engine.request import EngineRequest
from sala_export.installation import plugin_library

from .graphs import MiniGraph

MAX_CONTEXT = 5000
PREFILL_CHUNK = 300


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """The build of a graph with a lightning, a sparse and another lightning layer."""

    plan: Path
    report: EngineReport
    progress: tuple[tuple[str, int, int], ...]


def build_mini_engine(folder: Path, gpu: str) -> BuiltEngine:
    """Write the graph to `folder` and build it for a GPU."""
    graph = MiniGraph(mixers=("lightning", "sparse", "lightning")).write(folder)
    request = EngineRequest.from_options(load_target(gpu), max_context=MAX_CONTEXT, prefill_chunk=PREFILL_CHUNK)
    told: list[tuple[str, int, int]] = []

    def on_progress(phase: str, done: int, total: int, unit: str = "steps") -> None:
        told.append((phase, done, total))

    report = build_engine(request, graph, plugin_library(), folder, on_progress=on_progress)
    return BuiltEngine(plan=folder / PLAN_FILE, report=report, progress=tuple(told))
