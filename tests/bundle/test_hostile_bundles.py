"""Bundles whose files are none, or say more than they hold: one line at once. And bundles that change while open."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from support.bundles import copy_bundle
from support.checkpoints import edit_json
from support.hostile_files import NO_FILES, put_hole
from support.text_bundles import tiny_text_bundle

from sala_export.bundle.manifest import MANIFEST_FILE
from sala_export.bundle.reader import Bundle
from sala_export.errors import BundleError
from sala_export.model_source import ModelSource


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return copy_bundle(tiny_text_bundle(), tmp_path / "own.sala")


def weight_file(directory: Path) -> str:
    """Name of the first file of weights."""
    return Bundle.open(directory).manifest.weights.files[0].path


def refusal(directory: Path) -> str:
    begin = time.monotonic()
    with pytest.raises(BundleError) as caught:
        Bundle.open(directory)
    assert time.monotonic() - begin < 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [MANIFEST_FILE, "graph/cpu.onnx", "text/tokenizer.json", "weights"])
def test_what_is_no_file_is_refused_at_once(directory: Path, name: str, kind: str) -> None:
    name = weight_file(directory) if name == "weights" else name
    NO_FILES[kind](directory / name)
    assert Path(name).name in refusal(directory)


@pytest.mark.parametrize("name", [MANIFEST_FILE, "engine/report.json", "weights"])
def test_a_file_of_a_tebibyte_is_refused_unread(directory: Path, name: str) -> None:
    name = weight_file(directory) if name == "weights" else name
    put_hole(directory / name)
    assert f"{name} has {1 << 40} bytes" in refusal(directory)


def test_text_of_a_tebibyte_is_refused_unread(directory: Path) -> None:
    put_hole(directory / "text" / "tokenizer.json")

    def declare(fields: dict[str, list[dict[str, object]]]) -> None:
        next(entry for entry in fields["files"] if entry["path"] == "text/tokenizer.json")["bytes"] = 1 << 40

    edit_json(directory / MANIFEST_FILE, declare)
    with pytest.raises(BundleError, match=r"tokenizer\.json has 1099511627776 bytes, expected at most"):
        Bundle.open(directory).text_files()


def test_changed_text_is_found_when_it_is_read(directory: Path) -> None:
    path = directory / "text" / "tokenizer_config.json"
    path.write_bytes(path.read_bytes().swapcase())
    with pytest.raises(BundleError, match=r"tokenizer_config\.json has another SHA-256 than bundle\.json says"):
        Bundle.open(directory).text_files()


def test_all_is_read_from_the_bundle_that_was_opened(directory: Path) -> None:
    opened = Bundle.open(directory)
    kept = directory.rename(directory.with_name("kept"))
    directory.mkdir()
    opened.verify_hashes()
    texts = {name: hashlib.sha256(file.content).digest() for name, file in opened.text_files().items()}
    assert texts == {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (kept / "text").iterdir()}
    assert os.path.samestat(os.fstat(opened.descriptor), kept.stat())


def test_a_bundle_that_is_deleted_while_open_is_still_whole(directory: Path) -> None:
    opened = Bundle.open(directory)
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        path.unlink()
    opened.verify_hashes()


def test_a_change_is_found_by_who_hashes(directory: Path) -> None:
    source = ModelSource.open(directory)
    time.sleep(0.02)  # times of writes have steps of milliseconds
    os.utime(directory / weight_file(directory))
    with pytest.raises(BundleError, match="was changed while it was read"):
        source.fingerprint()
