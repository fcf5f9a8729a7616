"""Weights from where users have them: hub snapshots, other file systems, places that cannot be written to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import copy_checkpoint, tiny_checkpoint

from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import DiskFullError
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.onnx.weights import copied_bytes, place_weights
from sala_export.specs import Precision

NOBODY = 65534

PLACE = """
import os, sys
from pathlib import Path
from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.weights import place_weights
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
place_weights(Checkpoint.open(Path(sys.argv[1])).shard_files().values(), Path(sys.argv[2]), copy=False)
"""


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small."""
    disk = tmp_path / "disk"
    disk.mkdir()
    yield from mounted(disk, "-t", "tmpfs", "-o", "size=64m", "tmpfs")


def mounted(target: Path, *arguments: str) -> Iterator[Path]:
    result = subprocess.run(["mount", *arguments, str(target)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"needs the right to mount: {result.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def hub_cache(root: Path) -> Path:
    """The tiny checkpoint as the hub library keeps it: a snapshot of links into blobs named by their hashes."""
    repository = root / "models--someone--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_checkpoint().iterdir())):
        blob = blobs / f"{number:064x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_hub_snapshot_is_linked_under_the_names_of_the_snapshot(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(hub_cache(tmp_path / "hub"))
    graph = tmp_path / "graph"
    graph.mkdir()
    files = checkpoint.shard_files()
    assert copied_bytes(files.values(), graph, copy=False) == 0
    export_graph(checkpoint, graph, Precision.BF16)
    assert {path.name for path in graph.iterdir()} == {GRAPH_FILE, *files}
    for name, blob in files.items():
        assert not (graph / name).is_symlink()
        assert (graph / name).stat().st_ino == blob.path.stat().st_ino
        assert blob.path.resolve().parent.name == "blobs"


def test_hub_snapshot_on_another_file_system_is_copied_with_a_warning(
    tmp_path: Path, other_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint.open(hub_cache(tmp_path / "hub"))
    sizes = {name: file.path.stat().st_size for name, file in checkpoint.shard_files().items()}
    assert copied_bytes(checkpoint.shard_files().values(), other_disk, copy=False) == sum(sizes.values())
    export_graph(checkpoint, other_disk, Precision.BF16)
    assert "the output is on another file system than the checkpoint: copying" in caplog.text
    for name, file in checkpoint.shard_files().items():
        assert (other_disk / name).read_bytes() == file.path.read_bytes()


def test_copy_that_does_not_fit_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for small in mounted(disk, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        with pytest.raises(DiskFullError, match=r"not enough disk to copy the weights: .* put the output on"):
            export_graph(Checkpoint.open(tiny_checkpoint()), small, Precision.BF16)
        assert list(small.iterdir()) == []


def test_read_only_file_system_gives_copies(tmp_path: Path) -> None:
    source = copy_checkpoint(tiny_checkpoint(), tmp_path / "source")
    view = tmp_path / "view"
    view.mkdir()
    for checkpoint in mounted(view, "--bind", str(source)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(checkpoint)], check=True)
        graph = tmp_path / "graph"
        graph.mkdir()
        opened = Checkpoint.open(checkpoint)
        export_graph(opened, graph, Precision.BF16)
        for name, file in opened.shard_files().items():
            assert (graph / name).read_bytes() == file.path.read_bytes()
            (graph / name).open("r+b").close()
        # What is open cannot be unmounted.
        del opened, file


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users")
def test_weights_of_another_user_are_linked_or_copied_as_the_system_allows() -> None:
    """Linux refuses links to files that a user may only read, unless `fs.protected_hardlinks` is off."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        source = copy_checkpoint(tiny_checkpoint(), Path(folder) / "source")
        for file in source.iterdir():
            file.chmod(0o444)
        source.chmod(0o555)
        graph = Path(folder) / "graph"
        graph.mkdir()
        os.chown(graph, NOBODY, NOBODY)
        arguments = [sys.executable, "-c", PLACE, str(source), str(graph), str(NOBODY)]
        run = subprocess.run(arguments, capture_output=True, text=True, cwd=folder)
        assert run.returncode == 0, run.stderr
        for file in source.glob("*.safetensors"):
            assert (graph / file.name).read_bytes() == file.read_bytes()


def test_read_only_files_are_linked_and_stay_read_only(tmp_path: Path) -> None:
    source = copy_checkpoint(tiny_checkpoint(), tmp_path / "source")
    for file in source.glob("*.safetensors"):
        file.chmod(0o444)
    graph = tmp_path / "graph"
    graph.mkdir()
    place_weights(Checkpoint.open(source).shard_files().values(), graph, copy=False)
    for file in source.glob("*.safetensors"):
        assert (graph / file.name).stat().st_ino == file.stat().st_ino
        assert (graph / file.name).stat().st_mode & 0o777 == 0o444


def test_copies_are_asked_for_where_links_would_do(tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    graph.mkdir()
    files = Checkpoint.open(tiny_checkpoint()).shard_files()
    total = sum(file.path.stat().st_size for file in files.values())
    assert copied_bytes(files.values(), graph, copy=True) == total
    place_weights(files.values(), graph, copy=True)
    for name, file in files.items():
        assert (graph / name).stat().st_ino != file.path.stat().st_ino
