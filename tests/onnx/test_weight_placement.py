"""Weights from where users have them: hub snapshots, other file systems, places that cannot be written to."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from support.checkpoints import copy_checkpoint, tiny_checkpoint

from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import DiskFullError
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.onnx.weights import place_weights
from sala_export.specs import Precision, format_bytes

NOBODY = 65534

PLACE = """
import os, sys
from pathlib import Path
from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.weights import place_weights
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
place_weights(Checkpoint.open(Path(sys.argv[1])).shard_files().values(), Path(sys.argv[2]), link=True)
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


def loads(graph: Path) -> None:
    """Open a graph as the tools of ONNX do. They refuse symbolic links and files with several hard links."""
    path = str(graph / GRAPH_FILE)
    onnx.checker.check_model(path)
    model = onnx.load(path, load_external_data=False)
    onnx.load_external_data_for_model(model, str(graph))
    assert onnx.load(path) == model
    onnx.shape_inference.infer_shapes_path(path, f"{path}.inferred")


def test_graph_of_a_hub_snapshot_opens_in_onnx_tools(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint.open(hub_cache(tmp_path / "hub"))
    graph = tmp_path / "graph"
    graph.mkdir()
    files = checkpoint.shard_files()
    export_graph(checkpoint, graph, Precision.BF16)
    assert {path.name for path in graph.iterdir()} == {GRAPH_FILE, *files}
    loads(graph)
    for name, blob in files.items():
        assert not (graph / name).is_symlink()
        assert (graph / name).stat().st_nlink == 1
        assert (graph / name).read_bytes() == blob.path.read_bytes()
        assert blob.path.resolve().parent.name == "blobs"
    size = format_bytes(sum(file.size for file in files.values()))
    (told,) = caplog.messages
    assert told.startswith(f"copying {size} of weights: ")
    assert "--link saves the room" in told


def test_hub_snapshot_is_linked_if_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint.open(hub_cache(tmp_path / "hub"))
    graph = tmp_path / "graph"
    graph.mkdir()
    export_graph(checkpoint, graph, Precision.BF16, link_weights=True)
    for name, blob in checkpoint.shard_files().items():
        assert not (graph / name).is_symlink()
        assert (graph / name).stat().st_ino == blob.path.stat().st_ino
    assert caplog.messages == []
    with pytest.raises(onnx.checker.ValidationError, match="multiple hard links"):
        loads(graph)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that shares blocks between files."""
    image, disk = tmp_path / "btrfs", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    disk.mkdir()
    made = shutil.which("mkfs.btrfs") and subprocess.run(["mkfs.btrfs", "-q", str(image)], check=False).returncode == 0
    if not made:
        pytest.skip("needs mkfs.btrfs")
    yield from mounted(disk, "-o", "loop", str(image))


def used_bytes(disk: Path) -> int:
    subprocess.run(["sync", "-f", str(disk)], check=True)
    return shutil.disk_usage(disk).used


def test_weights_take_no_room_where_the_file_system_shares_blocks(
    btrfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = copy_checkpoint(tiny_checkpoint(), btrfs / "source")
    graph = btrfs / "graph"
    graph.mkdir()
    before = used_bytes(btrfs)
    checkpoint = Checkpoint.open(source)
    export_graph(checkpoint, graph, Precision.BF16)
    assert used_bytes(btrfs) - before < 1 << 20 < sum(file.size for file in checkpoint.shard_files().values())
    loads(graph)
    assert caplog.messages == []
    # What is open cannot be unmounted.
    del checkpoint


def test_sharing_is_asked_for_before_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel that shares all but the first file, of which only the first blocks fit."""
    asked: list[int] = []

    def share(target: int, request: int, source: int) -> int:
        asked.append(request)
        if len(asked) == 1:
            os.write(target, b"part")
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        os.sendfile(target, source, 0, os.fstat(source).st_size)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", share)
    graph = tmp_path / "graph"
    graph.mkdir()
    files = sorted(Checkpoint.open(tiny_checkpoint()).shard_files().values(), key=lambda file: file.path)
    told: list[tuple[str, int, int, str]] = []
    place_weights(files, graph, link=False, on_progress=lambda *step: told.append(step))
    # The number of FICLONE: a write of an int, type 0x94, command 9.
    assert asked == [1 << 30 | 4 << 16 | 0x94 << 8 | 9] * len(files)
    for file in files:
        assert (graph / file.path.name).read_bytes() == file.path.read_bytes()
    size = files[0].size
    assert (told[0], told[-1]) == (("copy", 0, size, "bytes"), ("copy", size, size, "bytes"))


def test_disk_that_fills_up_while_blocks_are_shared_is_no_reason_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "ioctl", full)
    with pytest.raises(OSError, match="No space left"):
        place_weights(Checkpoint.open(tiny_checkpoint()).shard_files().values(), tmp_path, link=False)
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_copies_inside_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: int) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    files = Checkpoint.open(tiny_checkpoint()).shard_files()
    place_weights(files.values(), tmp_path, link=False)
    for name, file in files.items():
        assert (tmp_path / name).read_bytes() == file.path.read_bytes()


@pytest.mark.parametrize("link", [False, True], ids=["copy", "link"])
def test_hub_snapshot_on_another_file_system_is_copied_with_a_warning(
    tmp_path: Path, other_disk: Path, caplog: pytest.LogCaptureFixture, link: bool
) -> None:
    checkpoint = Checkpoint.open(hub_cache(tmp_path / "hub"))
    export_graph(checkpoint, other_disk, Precision.BF16, link_weights=link)
    (told,) = caplog.messages
    assert told.endswith("put the output on the checkpoint's file system and link them with --link to save the room")
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
        export_graph(opened, graph, Precision.BF16, link_weights=True)
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
    place_weights(Checkpoint.open(source).shard_files().values(), graph, link=True)
    for file in source.glob("*.safetensors"):
        assert (graph / file.name).stat().st_ino == file.stat().st_ino
        assert (graph / file.name).stat().st_mode & 0o777 == 0o444
