"""Bundles for the CPU runtime that read and write text."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import write_cpu_bundle

from sala_export.bundle.hashing import hash_files
from sala_export.bundle.manifest import MANIFEST_FILE, TEXT_FOLDER
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.reader import Checkpoint
from sala_export.progress import silent

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-text-bundles-")


def write_text_bundle(source: Path, directory: Path) -> Path:
    """`write_cpu_bundle`, and the text files of the checkpoint; returns `directory`."""
    manifest = Bundle.open(write_cpu_bundle(source, directory)).manifest
    folder = directory / TEXT_FOLDER
    folder.mkdir()
    for name, file in Checkpoint.open(source).text_files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(file.content)
    files = hash_files(directory, [path for path in folder.rglob("*") if path.is_file()], silent)
    changed = replace(manifest, text=tuple(entry.path for entry in files), files=(*manifest.files, *files))
    (directory / MANIFEST_FILE).write_text(changed.to_json(), encoding="utf-8")
    return directory


@functools.cache
def tiny_text_bundle() -> Path:
    """Of the tiny checkpoint, written once per session; shared between tests, so never written to."""
    return write_text_bundle(tiny_checkpoint(), Path(_FOLDER.name) / "tiny.sala")
