"""Checkpoints whose files are none, or say more than they hold: one line at once. And such that change while open."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import copy_checkpoint, edit_header, edit_json, tiny_checkpoint
from support.golden import GOLDEN_CHECKPOINT
from support.hostile_files import NO_FILES, put_hole

from sala_export.checkpoint.folder import CONFIG_FILE, INDEX_FILE, CheckpointFolder
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from sala_export.onnx.weights import place_weights

SHARD = "model-00002-of-00003.safetensors"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that may be spoilt."""
    return copy_checkpoint(GOLDEN_CHECKPOINT, tmp_path / "checkpoint")


def refusal(directory: Path) -> str:
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        Checkpoint.open(directory).text_files()
    assert time.monotonic() - begin < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [CONFIG_FILE, INDEX_FILE, SHARD])
def test_what_is_no_file_is_refused_at_once(directory: Path, name: str, kind: str) -> None:
    NO_FILES[kind](directory / name)
    text = refusal(directory)
    # A link that leads nowhere is a file that is not there.
    assert name in text or INDEX_FILE in text


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if "link" not in kind])
def test_text_that_is_no_file_is_refused_before_it_is_needed(tmp_path: Path, kind: str) -> None:
    directory = copy_checkpoint(tiny_checkpoint(1), tmp_path / "tiny")
    NO_FILES[kind](directory / "tokenizer.json")
    assert "tokenizer.json" in refusal(directory)


@pytest.mark.parametrize("name", [CONFIG_FILE, INDEX_FILE])
def test_json_of_a_tebibyte_is_refused_unread(directory: Path, name: str) -> None:
    put_hole(directory / name)
    assert f"{name} has {1 << 40} bytes, expected at most" in refusal(directory)


def change_config(**fields: object) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / CONFIG_FILE, lambda config: config.update(fields))


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "size beyond int32": (change_config(hidden_size=1 << 31), "hidden_size is 2147483648, expected at most 2147483647"),
    "size of 4000 digits": (change_config(vocab_size=int("9" * 4000)), "vocab_size is 99999"),
    "number beyond fp64": (change_config(scale_emb=10**400), "scale_emb is 1000000"),
    "long list in place of a number": (change_config(hidden_size=[[1] * 9] * 9999), "hidden_size is [[1, 1, 1, 1, "),
    "long text in place of a number": (change_config(hidden_size="x" * 999999), "hidden_size is 'xxxx"),
    "long word": (change_config(hidden_act="x" * 999999), "hidden_act is 'xxxx"),
    "deep config": (write(CONFIG_FILE, '{"a":' * 99999), "cannot be read as JSON"),
    "NaN": (write(CONFIG_FILE, '{"rms_norm_eps": NaN}'), "NaN is no JSON number"),
    "deep index": (write(INDEX_FILE, "[" * 99999), "cannot be read as JSON"),
    "long shard": (
        lambda directory: edit_json(directory / INDEX_FILE, lambda i: i["weight_map"].update({Q_PROJ: "x" * 99999})),
        f"places {Q_PROJ} in 'xxxx",
    ),
    "list in place of a format": (
        change_config(quantization_config={"quant_method": "compressed-tensors", "format": ["x"]}),
        "quantization_config.format is ['x']",
    ),
    "expression that is none": (
        change_config(
            quantization_config={
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"},
                        "input_activations": {
                            "num_bits": 8,
                            "type": "float",
                            "symmetric": True,
                            "strategy": "tensor",
                            "dynamic": False,
                        },
                    }
                },
                "ignore": ["re:" + "(" * 999],
            }
        ),
        "which is no regular expression",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_json_is_one_short_line(directory: Path, what: str) -> None:
    spoil, message = WRONG[what]
    spoil(directory)
    assert message in refusal(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 1 << 64]},
        {"data_offsets": [False, True]},
        {"data_offsets": [0, int("9" * 4000)]},
        {"shape": [int("9" * 4000), 0]},
        {"shape": [True, 128]},
        {"shape": [[1]]},
    ],
)
def test_header_entry_beyond_its_type_is_refused_by_name(directory: Path, change: dict[str, Any]) -> None:
    edit_header(directory / SHARD, lambda header: header[Q_PROJ].update(change))
    assert f"its header entry of {Q_PROJ} is malformed" in refusal(directory)


def test_header_that_claims_more_than_the_file_is_not_read(directory: Path) -> None:
    (directory / SHARD).write_bytes((9_000_000).to_bytes(8, "little") + b"{}")
    assert f"{SHARD} is truncated: it has 10 bytes, its header needs 9000008" in refusal(directory)


def test_deep_header_is_refused(directory: Path) -> None:
    text = b"[" * 200_000
    (directory / SHARD).write_bytes(len(text).to_bytes(8, "little") + text)
    assert f"{SHARD} is not a valid safetensors file: its header is not JSON" in refusal(directory)


def test_all_is_read_from_the_checkpoint_that_was_opened(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("mine")
    expected = Checkpoint.open(GOLDEN_CHECKPOINT).tensor(Q_PROJ)
    folder = CheckpointFolder.open(directory)
    directory.rename(directory.with_name("away"))
    directory.mkdir()
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.tensor(Q_PROJ), expected)
    assert checkpoint.text_files()["tokenizer.json"].content == b"mine"


def test_weights_that_are_cut_off_while_open_are_refused(directory: Path) -> None:
    """A mapped file would end the process."""
    checkpoint = Checkpoint.open(directory)
    os.truncate(directory / SHARD, 5000)
    with pytest.raises(CheckpointError, match=rf"{SHARD} ends before byte \d+: it is truncated"):
        checkpoint.tensor(Q_PROJ)
    with pytest.raises(CheckpointError, match=rf"{SHARD} was changed while it was read"):
        checkpoint.require_unchanged()


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_weights_that_were_opened_are_placed_whatever_has_their_names(
    directory: Path, tmp_path: Path, link: bool, gone: bool
) -> None:
    files = Checkpoint.open(directory).shard_files()
    if gone:
        (directory / SHARD).unlink()
    else:
        (directory / SHARD).rename(tmp_path / "moved")
    (directory / SHARD).write_text("another")
    (tmp_path / "graph").mkdir()
    place_weights(files.values(), tmp_path / "graph", link=link)
    for name, file in files.items():
        assert file.is_at((tmp_path / "graph" / name).stat()) == (link and not (gone and name == SHARD))
        assert (tmp_path / "graph" / name).read_bytes() == (GOLDEN_CHECKPOINT / name).read_bytes()


def test_errors_have_the_class_of_what_is_wrong(directory: Path) -> None:
    edit_json(directory / CONFIG_FILE, lambda config: config.update(hidden_act="gelu"))
    with pytest.raises(UnsupportedError, match=rf"{CONFIG_FILE}: hidden_act"):
        Checkpoint.open(directory)
    (directory / CONFIG_FILE).write_text(json.dumps([]))
    with pytest.raises(ConfigError, match="holds list, expected a JSON object"):
        Checkpoint.open(directory)
