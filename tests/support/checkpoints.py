"""Checkpoints for tests: one tiny random checkpoint per session, and ways to spoil copies of one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.specs import Precision

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-checkpoints-")


def tiny_checkpoint(layers: int | None = None, precision: Precision = Precision.BF16) -> Path:
    """The `tiny` preset with seed 0, written once per session; shared between tests, so never written to."""
    path = Path(_FOLDER.name) / f"tiny-{layers or 'all'}-{precision}"
    if not path.exists():
        write_random_checkpoint(path, "tiny", layers=layers, precision=precision)
    return path


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy whose files may be changed."""
    return Path(shutil.copytree(source, target, copy_function=shutil.copyfile))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the object that a JSON file holds."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the header of a safetensors file; the data stay as they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
