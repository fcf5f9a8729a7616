from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.checkpoints import copy_checkpoint, edit_header, edit_json, tiny_checkpoint
from support.golden import GOLDEN_CHECKPOINT

from sala_export.checkpoint.folder import INDEX_FILE, WEIGHTS_FILE
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, RequestError
from sala_export.specs import DType

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that may be spoilt."""
    return copy_checkpoint(GOLDEN_CHECKPOINT, tmp_path / "checkpoint")


def rewrite(directory: Path, shard: str, **changes: torch.Tensor | None) -> None:
    """Save a shard anew with some tensors replaced, or removed where None."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / shard).items()}
    for name, tensor in changes.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, directory / shard)


def single_file(directory: Path, dtype: torch.dtype | None = None) -> None:
    """Merge the shards into one file without an index."""
    merged = {name: t.to(dtype) for shard in SHARDS for name, t in load_file(directory / shard).items()}
    for name in (*SHARDS, INDEX_FILE):
        (directory / name).unlink()
    save_file(merged, directory / WEIGHTS_FILE)


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert str(directory) in text
    assert len(text) < 600
    return text


def test_tensors_are_those_of_the_safetensors_library() -> None:
    checkpoint = Checkpoint.open(GOLDEN_CHECKPOINT)
    for shard in SHARDS:
        with safe_open(GOLDEN_CHECKPOINT / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                assert torch.equal(checkpoint.tensor(name), file.get_tensor(name))
                assert checkpoint.locations[name].file.path.name == shard
    assert checkpoint.dtype is DType.BFLOAT16
    assert checkpoint.weight_bytes() == 3673984


def test_locations_are_the_bytes_of_the_file() -> None:
    checkpoint = Checkpoint.open(GOLDEN_CHECKPOINT)
    for name in checkpoint.locations:
        location = checkpoint.locations[name]
        content = location.file.path.read_bytes()[location.offset : location.offset + location.length]
        expected = checkpoint.tensor(name).view(torch.uint8).numpy().tobytes()
        assert (content, location.shape) == (expected, tuple(checkpoint.tensor(name).shape))


def test_opening_reads_headers_only(directory: Path) -> None:
    # The data are replaced by a hole of 100 GB, which could be neither read nor held in memory.
    edit_json(directory / "config.json", lambda config: config.update(vocab_size=400_000_000))
    shape = [400_000_000, 128]
    grown = 400_000_000 * 128 * 2

    def grow(name: str) -> Any:
        def change(header: dict[str, Any]) -> None:
            begin = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, begin + grown]}

        return change

    for shard, name in ((SHARDS[0], "model.embed_tokens.weight"), (SHARDS[2], "lm_head.weight")):
        edit_header(directory / shard, grow(name))
        with (directory / shard).open("r+b") as file:
            file.truncate((directory / shard).stat().st_size + grown)
    assert Checkpoint.open(directory).weight_bytes() > 200e9


def test_locations_need_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from sala_export.checkpoint.reader import Checkpoint; "
        f"Checkpoint.open(Path({str(GOLDEN_CHECKPOINT)!r})).shard_files(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_writes_to_a_tensor_stay_private(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    before = (directory / SHARDS[0]).read_bytes()
    checkpoint.tensor(Q_PROJ).zero_()
    assert (directory / SHARDS[0]).read_bytes() == before
    assert checkpoint.tensor(Q_PROJ).abs().sum() > 0


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_data_at_any_offset_are_read(directory: Path, padding: int) -> None:
    expected = Checkpoint.open(GOLDEN_CHECKPOINT)
    edit_header(directory / SHARDS[0], lambda header: header["__metadata__"].update(note="x" * padding))
    checkpoint = Checkpoint.open(directory)
    assert torch.equal(checkpoint.tensor(Q_PROJ), expected.tensor(Q_PROJ))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_file_of_one_floating_type_is_accepted(directory: Path, dtype: torch.dtype) -> None:
    single_file(directory, dtype)
    checkpoint = Checkpoint.open(directory)
    assert str(dtype) == f"torch.{checkpoint.dtype}"
    assert checkpoint.tensor(Q_PROJ).dtype is dtype
    assert list(checkpoint.shard_files()) == [WEIGHTS_FILE]


def test_hub_snapshot_of_symlinks_is_resolved(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")
    blobs = tmp_path / "blobs"
    directory.rename(blobs)
    directory.mkdir()
    for i, blob in enumerate(sorted(blobs.iterdir())):
        (directory / blob.name).symlink_to(Path("..") / "blobs" / f"{i}")
        blob.rename(blobs / f"{i}")
    checkpoint = Checkpoint.open(directory)
    assert sorted(checkpoint.shard_files()) == SHARDS
    assert {file.path.resolve().parent for file in checkpoint.shard_files().values()} == {blobs}
    assert {name: file.content for name, file in checkpoint.text_files().items()} == {"tokenizer.json": b"{}"}


def test_text_files_are_found() -> None:
    expected = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert Checkpoint.open(tiny_checkpoint()).text_files().keys() == expected
    assert Checkpoint.open(GOLDEN_CHECKPOINT).text_files() == {}


def test_first_layers_are_taken_alone() -> None:
    whole, short = Checkpoint.open(GOLDEN_CHECKPOINT), Checkpoint.open(GOLDEN_CHECKPOINT, layers=1)
    assert short.locations.keys() == {n for n in whole.locations if not re.search(r"layers\.[12]\.", n)}
    assert short.config.residual_scale == whole.config.residual_scale
    with pytest.raises(RequestError, match="layers is 4"):
        Checkpoint.open(GOLDEN_CHECKPOINT, layers=4)


def test_tensors_and_shards_of_layers_not_taken_are_ignored(directory: Path) -> None:
    (directory / SHARDS[1]).unlink()
    assert Checkpoint.open(directory, layers=1).config.num_hidden_layers == 1
    assert sorted(Checkpoint.open(directory, layers=1).shard_files()) == [SHARDS[0], SHARDS[2]]


def test_missing_shards_are_named(directory: Path) -> None:
    for shard in SHARDS[1:]:
        (directory / shard).unlink()
    assert f"lacks {SHARDS[1]}, {SHARDS[2]}: download" in refusal(directory)


@pytest.mark.parametrize("size", [0, 5, 100, 1445791])
def test_truncated_shard_is_refused(directory: Path, size: int) -> None:
    with (directory / SHARDS[1]).open("r+b") as file:
        file.truncate(size)
    assert f"{SHARDS[1]} is truncated: it has {size} bytes" in refusal(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 4096, "its header claims 18446744073709551615 bytes"),
        (((16 << 20) + 1).to_bytes(8, "little") + b" ", "its header claims 16777217 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 3, "its header claims"),
        ((8).to_bytes(8, "little") + b"not json", "its header is not JSON"),
        ((8).to_bytes(8, "little") + b"\xff" * 8, "its header is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not a JSON object"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "its header entry of a is malformed"),
    ],
)
def test_damaged_header_is_refused(directory: Path, content: bytes, message: str) -> None:
    (directory / SHARDS[0]).write_bytes(content)
    assert f"{SHARDS[0]} is not a valid safetensors file: {message}" in refusal(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": 7},
        {"shape": [-1024, 128]},
        {"shape": "1024"},
        {"data_offsets": [0]},
        {"data_offsets": [-2, 262142]},
        {"data_offsets": [262144, 0]},
        {"data_offsets": [0.0, 262144.0]},
    ],
)
def test_malformed_header_entry_is_refused_by_name(directory: Path, change: dict[str, Any]) -> None:
    edit_header(directory / SHARDS[0], lambda header: header[Q_PROJ].update(change))
    assert f"its header entry of {Q_PROJ} is malformed" in refusal(directory)


def test_length_that_contradicts_the_shape_is_refused(directory: Path) -> None:
    edit_header(directory / SHARDS[0], lambda header: header[Q_PROJ].update(data_offsets=[0, 8]))
    assert f"{Q_PROJ} takes 8 bytes, but its shape and type need 262144" in refusal(directory)


def test_tensor_that_the_index_lists_but_the_shard_lacks_is_refused(directory: Path) -> None:
    rewrite(directory, SHARDS[0], **{Q_PROJ: None})
    assert f"{SHARDS[0]} should hold {Q_PROJ} but does not" in refusal(directory)


def test_many_missing_tensors_are_shortened(directory: Path) -> None:
    edit_json(directory / INDEX_FILE, lambda index: index.update(weight_map={"lm_head.weight": SHARDS[2]}))
    assert re.search(r"does not list model.embed_tokens.weight, .* and 31 more: it is incomplete", refusal(directory))
    single_file(directory)
    mixers = ["minicpm4", "lightning-attn", *["minicpm4"] * 7]
    edit_json(directory / "config.json", lambda c: c.update(num_hidden_layers=9, mixer_types=mixers))
    text = refusal(directory)
    assert f"{WEIGHTS_FILE} should hold model.layers.3.input_layernorm.weight, model.layers.3." in text
    assert "and 56 more but does not" in text


def test_wrong_shape_is_refused_with_both_shapes(directory: Path) -> None:
    rewrite(directory, SHARDS[0], **{Q_PROJ: torch.zeros(128, 1024, dtype=torch.bfloat16)})
    assert f"{SHARDS[0]}: {Q_PROJ} has shape [128, 1024], but config.json calls for [1024, 128]" in refusal(directory)


def test_quantized_type_is_refused_by_name(directory: Path) -> None:
    rewrite(directory, SHARDS[0], **{Q_PROJ: torch.zeros(1024, 128, dtype=torch.float8_e4m3fn)})
    assert f"{Q_PROJ} has type F8_E4M3, expected one of BF16, F16, F32" in refusal(directory)


def test_directory_without_safetensors_is_refused(directory: Path) -> None:
    (directory / INDEX_FILE).unlink()
    assert f"has neither {WEIGHTS_FILE} nor {INDEX_FILE}" in refusal(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read as JSON"), ("[]", "has no weight_map object"), ('{"weight_map": 3}', "has no weight_map")],
)
def test_damaged_index_is_refused(directory: Path, content: str, message: str) -> None:
    (directory / INDEX_FILE).write_text(content)
    assert f"{INDEX_FILE} {message}" in refusal(directory)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "a/b.safetensors", "/etc/passwd", "", "..", 3])
def test_index_that_leaves_the_directory_is_refused(directory: Path, shard: object) -> None:
    edit_json(directory / INDEX_FILE, lambda index: index["weight_map"].update({Q_PROJ: shard}))
    assert f"places {Q_PROJ} in {shard!r}, expected a .safetensors file beside it" in refusal(directory)


@pytest.mark.parametrize(
    ("shard", "written"),
    [
        ("w\udcfe.safetensors", r"'w\udcfe.safetensors'"),
        ("w\x1b[2J.safetensors", r"'w\x1b[2J.safetensors'"),
        ("w\u202e.safetensors", r"'w\u202e.safetensors'"),
        ("w\n.safetensors", r"'w\n.safetensors'"),
    ],
)
def test_shard_with_an_unprintable_name_is_refused(directory: Path, shard: str, written: str) -> None:
    """Even where the file exists, because the name would be one in the graph."""
    (directory / "model-00002-of-00003.safetensors").rename(directory / shard)
    edit_json(directory / INDEX_FILE, lambda index: index["weight_map"].update({Q_PROJ: shard}))
    assert f"places {Q_PROJ} in {written}, expected a .safetensors file beside it, with a name" in refusal(directory)


def test_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file is not a directory: a checkpoint is a directory in" in refusal(tmp_path / "file")
    assert "absent does not exist: a checkpoint is a directory in" in refusal(tmp_path / "absent")
