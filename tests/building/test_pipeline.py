"""The order of the stages, and what stays behind when one fails."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import copy_checkpoint, tiny_checkpoint
from support.opened_files import opened

from sala_export.building import pipeline
from sala_export.building.pipeline import build_bundle, export_onnx
from sala_export.building.requests import BuildRequest, ModelRequest
from sala_export.bundle.hashing import Span
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.build import LOG_FILE
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import BuildError, BundleError, RequestError
from sala_export.specs import Precision
from sala_export.staging import MARKER

ENGINE = EngineRequest.from_options(load_target("rtx5090"), max_context=4096, prefill_chunk=256)


def request(output: Path, model: Path | None = None) -> BuildRequest:
    return BuildRequest(model=ModelRequest(model=str(model or tiny_checkpoint())), engine=ENGINE, output=output)


def test_failed_build_keeps_its_log_under_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        log = arguments[3] / LOG_FILE
        log.write_text("what TensorRT said", encoding="utf-8")
        raise BuildError(f"TensorRT gave up (log: {log})")

    monkeypatch.setattr(pipeline, "build_engine", fail)
    mine = tmp_path / "out.sala.log"
    mine.write_text("mine", encoding="utf-8")
    kept = tmp_path / "out.sala.log.1"
    with pytest.raises(BuildError) as error:
        build_bundle(request(tmp_path / "out.sala"))
    assert str(error.value) == f"TensorRT gave up (log: {kept})"
    assert kept.read_text(encoding="utf-8") == "what TensorRT said"
    assert mine.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, kept.name]


def test_file_that_cannot_be_hashed_ends_the_build_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker would wait for its parent forever."""
    unreadable = {"a tensor": Span(opened(Path("/proc/self/mem")), 0, 8)}
    monkeypatch.setattr(pipeline, "_spans", lambda *_: unreadable)
    workers: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def start_idle(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        told = "import json, sys, time\nwhile True: print(json.dumps(['work', 0, 9]), flush=True); time.sleep(0.01)"
        workers.append(start([arguments[0], "-c", told], **{**options, "stdout": options["pass_fds"][0]}))
        return workers[-1]

    monkeypatch.setattr(subprocess, "Popen", start_idle)
    with pytest.raises(BundleError, match=r"^/proc/self/mem cannot be read: Input/output error$"):
        build_bundle(request(tmp_path / "out.sala"))
    assert [worker.poll() for worker in workers] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []


def test_copies_are_told_in_bytes_and_an_interruption_leaves_none(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []

    def on_progress(phase: str, done: int, total: int, unit: str = "steps") -> None:
        if phase != "copy":
            raise KeyboardInterrupt
        told.append((done, total, unit))

    with pytest.raises(KeyboardInterrupt):
        build_bundle(request(tmp_path / "out.sala"), on_progress)
    total = sum(file.size for file in Checkpoint.open(tiny_checkpoint()).shard_files().values())
    assert (told[0], told[-1]) == ((0, total, "bytes"), (total, total, "bytes"))
    assert len(told) > 2
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    engine = EngineRequest.from_options(load_target("rtx5090"), max_context=1 << 30, prefill_chunk=256)
    wanted = replace(request(tmp_path / "out.sala"), engine=engine)
    with pytest.raises(RequestError, match=r"--max-context 1024M needs .* the largest that fits is --max-context"):
        build_bundle(wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["", "inside"])
def test_output_that_holds_the_checkpoint_is_refused(tmp_path: Path, where: str) -> None:
    holder = tmp_path / "holder"
    checkpoint = holder / where
    checkpoint.parent.mkdir(exist_ok=True)
    copy_checkpoint(tiny_checkpoint(), checkpoint)
    (holder / MARKER).touch()
    before = sorted(checkpoint.iterdir())
    with pytest.raises(RequestError, match="holds the checkpoint itself"):
        export_onnx(ModelRequest(model=str(checkpoint)), holder, Precision.BF16, force=True)
    assert sorted(checkpoint.iterdir()) == before


def test_model_given_as_the_current_directory_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint())
    assert ModelRequest(model=".").name == tiny_checkpoint().name
    assert ModelRequest(model=".").open().origin == tiny_checkpoint().name
    assert ModelRequest(model="openbmb/MiniCPM-SALA").name == "MiniCPM-SALA"
