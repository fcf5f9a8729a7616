"""Bundles for tests, each built once per session."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from support.checkpoints import tiny_checkpoint

from sala_export.building.pipeline import build_bundle
from sala_export.building.requests import BuildRequest, ModelRequest
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-bundles-")


@functools.cache
def tiny_bundle(gpu: str) -> Path:
    """The tiny checkpoint built for `gpu` with a small context; shared between tests, so never written to."""
    path = Path(_FOLDER.name) / f"tiny-{gpu}.sala"
    engine = EngineRequest.from_options(load_target(gpu), max_context=16384, prefill_chunk=1024)
    build_bundle(BuildRequest(model=ModelRequest(model=str(tiny_checkpoint())), engine=engine, output=path))
    return path


def copy_bundle(source: Path, target: Path) -> Path:
    """A copy whose files may be changed, as if it had come from another machine."""
    return Path(shutil.copytree(source, target, copy_function=shutil.copyfile))
