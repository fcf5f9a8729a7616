"""Building the engines of a cut model one after the other, and going on where an earlier build ended."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..errors import SalaError
from ..progress import SHARDS_PHASE, Progress
from .build import build_engine
from .report import EngineReport
from .request import EngineRequest
from .sharding import ShardRange

_LOG = logging.getLogger(__name__)
_RECORD_SUFFIX = ".done"

CutShard = Callable[[ShardRange, Path], None]
"""Writes the graph of a shard to a file of the folder that holds the whole graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFiles:
    """Where the outcome of one shard lies."""

    plan: Path
    report: Path
    log: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What a finished shard was, written after everything else of it."""

    shard: ShardRange
    sha256: dict[str, str]
    """By file name."""


def shard_files(folder: Path, index: int) -> ShardFiles:
    """The files of a shard by its place, e.g. `shard-02.plan`."""
    stem = folder / f"shard-{index:02d}"
    return ShardFiles(plan=stem.with_suffix(".plan"), report=stem.with_suffix(".json"), log=stem.with_suffix(".log"))


def kept_shards(folder: Path) -> tuple[ShardRange, ...] | None:
    """How the build that left `folder` had cut the model; None if it left no word of that."""
    try:
        return _RANGES.validate_json((folder / _RANGES_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardBuilds:
    """One engine per shard, from one exported graph."""

    request: EngineRequest
    graph_dir: Path
    folder: Path
    """Gets plans, reports and logs."""
    shards: tuple[ShardRange, ...]
    plugin_library: Path
    cut: CutShard
    on_progress: Progress
    on_first_finished: Callable[[], None]
    """Called when a shard of several is finished and checked for the first time, so that it may be kept."""

    def run(self) -> tuple[EngineReport, ...]:
        """Build what is not there yet; returns the reports in order of layers.

        The plugin library goes into the first plan alone: the runtime that loads it has the operators for all.

        Raises: as `build_engine`; the message says which shard failed, and what is kept.
        """
        (self.folder / _RANGES_FILE).write_bytes(_RANGES.dump_json(self.shards))
        if len(self.shards) > 1:
            return self._run_several()
        return (self._build(0, self.on_progress),)

    def _run_several(self) -> tuple[EngineReport, ...]:
        total, done = sum(shard.weights_bytes for shard in self.shards), 0
        reports: list[EngineReport] = []
        for index, shard in enumerate(self.shards):
            self.on_progress(SHARDS_PHASE, done, total, "bytes")
            report = self._finished(index)
            if report is None:
                report = self._build_numbered(index)
                self._finish(index)
            else:
                _LOG.info("shard %d of %d is there from an earlier build", index + 1, len(self.shards))
            if not reports:
                self.on_first_finished()
            reports.append(report)
            done += shard.weights_bytes
        self.on_progress(SHARDS_PHASE, total, total, "bytes")
        return tuple(reports)

    def _build_numbered(self, index: int) -> EngineReport:
        name = f"shard {index + 1} of {len(self.shards)}"

        def on_progress(phase: str, done: int, total: int, unit: str = "steps") -> None:
            self.on_progress(f"{name}: {phase}", done, total, unit)

        try:
            return self._build(index, on_progress)
        except SalaError as error:
            raise type(error)(f"{name}: {error}") from error

    def _build(self, index: int, on_progress: Progress) -> EngineReport:
        shard, files = self.shards[index], shard_files(self.folder, index)
        graph = self.graph_dir / f"{files.plan.stem}.onnx"
        try:
            self.cut(shard, graph)
            report = build_engine(
                self.request,
                self.graph_dir,
                files.plan,
                graph_file=graph.name,
                log_path=files.log,
                plugin_library=self.plugin_library,
                serialize_library=index == 0,
                on_progress=on_progress,
            )
        finally:
            graph.unlink(missing_ok=True)
        files.report.write_text(report.to_json(), encoding="utf-8")
        return report

    def _record(self, index: int) -> Path:
        return shard_files(self.folder, index).plan.with_suffix(_RECORD_SUFFIX)

    def _finish(self, index: int) -> None:
        """Say that a shard is whole: with its hashes, and in one step."""
        record = _Record(shard=self.shards[index], sha256=_hashes(shard_files(self.folder, index)))
        unfinished = self._record(index).with_suffix(".new")
        unfinished.write_bytes(_RECORDS.dump_json(record))
        unfinished.rename(self._record(index))

    def _finished(self, index: int) -> EngineReport | None:
        """The report of a shard that an earlier build finished, if every file of it is as it was then."""
        files = shard_files(self.folder, index)
        try:
            record = _RECORDS.validate_json(self._record(index).read_bytes())
            if record != _Record(shard=self.shards[index], sha256=_hashes(files)):
                return None
        except (FileNotFoundError, ValidationError):
            return None
        return EngineReport.read(files.report)


def finished_shards(folder: Path) -> set[str]:
    """Stems of the files of shards that are finished, while others of the same build are not."""
    return {path.stem for path in folder.glob(f"*{_RECORD_SUFFIX}")}


def records(folder: Path) -> list[Path]:
    """The files that only serve to go on with a build, to be removed when the bundle is whole."""
    return [path for path in folder.iterdir() if path.suffix == _RECORD_SUFFIX or path.name == _RANGES_FILE]


def clear_unfinished(folder: Path) -> None:
    """Remove from a kept folder whatever is not of a finished shard."""
    finished = finished_shards(folder)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.stem not in finished and path.name != _RANGES_FILE:
            path.unlink()


def _hashes(files: ShardFiles) -> dict[str, str]:
    hashes = {}
    for path in (files.plan, files.report, files.log):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


_RANGES_FILE = "shards.json"
_RANGES = TypeAdapter(tuple[ShardRange, ...])
_RECORDS = TypeAdapter(_Record)
