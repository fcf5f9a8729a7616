"""Files of tests, opened as the product opens them."""

from __future__ import annotations

from pathlib import Path

from sala_export.checkpoint.safetensors_header import StoredTensor, read_header
from sala_export.errors import BundleError, CheckpointError
from sala_export.files import OpenedFile


def opened(path: Path) -> OpenedFile:
    """The file; what is wrong with it is a BundleError."""
    return OpenedFile.open(path, error=BundleError)


def header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file."""
    return read_header(OpenedFile.open(path, error=CheckpointError))
