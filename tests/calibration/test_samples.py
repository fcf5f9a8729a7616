"""Calibration files: what is read, and what is refused in one line."""

from __future__ import annotations

import json
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_checkpoint

from sala_export.calibration.samples import SampleRequest, shipped_tokens
from sala_export.calibration.shipped_text import documents
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, RequestError
from sala_export.files import TextFile
from sala_export.runtime.text import Tokenizer

TEXT = "a text of some words that is repeated " * 8


def read(path: Path, lines: list[str], **options: int) -> list[list[int]]:
    file = path / "lines.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    checkpoint = Checkpoint.open(tiny_checkpoint())
    texts = checkpoint.text_files()
    return [ids.tolist() for ids in SampleRequest(file=file, **options).read(checkpoint.config, texts)]


def test_text_is_tokenised_and_cut(tmp_path: Path) -> None:
    found = read(tmp_path, [json.dumps({"text": TEXT}), "", json.dumps({"text": "short"})], sequence_length=40)
    assert len(found[0]) == 40
    assert found[0][0] == 1  # the beginning of a text
    assert 1 < len(found[1]) < 40


def test_token_ids_are_taken_as_they_are_and_no_more_lines_than_asked_for(tmp_path: Path) -> None:
    lines = [json.dumps({"input_ids": [i] * 20}) for i in range(4)]
    assert read(tmp_path, [*lines, "not JSON"], samples=3) == [[0] * 20, [1] * 20, [2] * 20]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "lines.jsonl gives 0 tokens"),
        (['{"input_ids": [1, 2]}'], "gives 2 tokens: calibration needs at least 16"),
        (['{"text": "a"}', "plain text"], r"lines.jsonl:2 is not JSON"),
        (["[1, 2]"], r"lines.jsonl:1 holds list, expected an object"),
        (['{"prompt": "a"}'], r"lines.jsonl:1 has no text"),
        (['{"text": 3}'], r"lines.jsonl:1 has no text"),
        (['{"text": "ok"}', r'{"text": "ab\udfff"}'], r"lines.jsonl:2: text has half a surrogate pair at character 2"),
        (['{"input_ids": "a"}'], r"lines.jsonl:1: input_ids is not a list of integers"),
        (['{"input_ids": [1, true]}'], r"lines.jsonl:1: input_ids is not a list of integers"),
        (['{"input_ids": [1, 512]}'], r"lines.jsonl:1: token 512 is outside the vocabulary of 512"),
    ],
)
def test_bad_file_is_refused_with_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read(tmp_path, lines)


def test_bad_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--samples 0: expected at least 1"):
        read(tmp_path, [], samples=0)
    with pytest.raises(RequestError, match=r"--sequence-length 1000000 is more than the 524288 tokens"):
        read(tmp_path, [], sequence_length=1_000_000)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    config = Checkpoint.open(tiny_checkpoint()).config
    with pytest.raises(RequestError, match=r"none.jsonl cannot be read: No such file"):
        SampleRequest(file=tmp_path / "none.jsonl").read(config, None)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="is not UTF-8 text"):
        SampleRequest(file=tmp_path / "binary.jsonl").read(config, None)


def test_endless_line_is_refused() -> None:
    with pytest.raises(RequestError, match=r"/dev/zero:1 has 67108864 characters or more: expected JSON lines"):
        SampleRequest(file=Path("/dev/zero")).read(Checkpoint.open(tiny_checkpoint()).config, {})


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": TEXT}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"the checkpoint has no tokenizer.json: copy it there"):
        SampleRequest(file=tmp_path / "lines.jsonl").read(Checkpoint.open(tiny_checkpoint()).config, {})


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None}, "is no tokenizer"),
        ({"version": "\udcff"}, "cannot be read as JSON"),
        ({"continuing_subword_prefix": "longer than any"}, "is no tokenizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}}, "its normalizer may make a text"),
    ],
    ids=["no model", "no UTF-8", "a panic", "endless growth"],
)
def test_tokenizer_that_cannot_be_used_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changed: dict[str, Any], message: str
) -> None:
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": TEXT}), encoding="utf-8")
    checkpoint = Checkpoint.open(tiny_checkpoint())
    spec = json.loads(checkpoint.text_files()["tokenizer.json"].content)
    part = spec["model"] if "continuing_subword_prefix" in changed else spec
    part |= changed
    content = json.dumps(spec, ensure_ascii=False).encode(errors="surrogateescape")
    with pytest.raises(CheckpointError, match=message) as caught:
        SampleRequest(file=tmp_path / "lines.jsonl").read(
            checkpoint.config, {"tokenizer.json": TextFile(tmp_path / "tokenizer.json", content)}
        )
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def shipped(say: list[str], **options: int) -> list[torch.Tensor]:
    checkpoint = Checkpoint.open(tiny_checkpoint())
    request = SampleRequest(say=say.append, **options)
    return request.read(checkpoint.config, checkpoint.text_files())


def test_text_that_ships_is_taken_without_a_file_and_said() -> None:
    said: list[str] = []
    found = shipped(said)
    texts = list(documents())
    assert len(found) == len(texts)
    lengths = [len(ids) for ids in found]
    assert lengths == [1024 if document.is_long else 192 for document in texts]
    assert said == [
        f"calibrating with the text that ships with sala-export, {sum(lengths):,} tokens: give --calibration FILE for "
        "your own"
    ]
    assert [len(ids) for ids in shipped([], samples=3, sequence_length=50)] == [50, 50, 50]


def test_text_that_ships_needs_a_tokenizer() -> None:
    with pytest.raises(CheckpointError, match=r"ships with sala-export is text, .* no tokenizer.json: .*--calibration"):
        SampleRequest().read(Checkpoint.open(tiny_checkpoint()).config, {})


def test_verification_reads_what_calibration_does_not_and_of_every_document() -> None:
    for document in documents():
        assert document.to_calibrate + document.to_verify == document.text
        assert len(document.to_verify) == len(document.text) // 4 > 150
    checkpoint = Checkpoint.open(tiny_checkpoint())
    texts = checkpoint.text_files()
    assert len(shipped_tokens(checkpoint.config, texts, 777)) == 777
    everything = shipped_tokens(checkpoint.config, texts, 500_000)
    assert 20_000 < len(everything) < 500_000


def test_text_that_ships_is_varied() -> None:
    """Documents in a dozen scripts and languages, code, dialogue, long samples; none repeats another."""
    texts = {document.name: document.text for document in documents()}
    whole = "".join(texts.values())
    assert 100_000 < len(whole.encode()) < 250_000
    letters = {
        script
        for script in ("LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "HIRAGANA", "HANGUL", "CJK UNIFIED")
        if sum(unicodedata.name(letter, "").startswith(script) for letter in whole) > 300
    }
    assert len(letters) == 7
    assert sum("<|im_start|>user" in text for text in texts.values()) >= 5
    assert sum(document.is_long and len(document.text) > 2000 for document in documents()) == 2
    lines = [line for line in whole.splitlines() if len(line) > 60]
    assert len(set(lines)) / len(lines) > 0.99
    # Text that repeats itself compresses to much less.
    assert len(zlib.compress(whole.encode(), 9)) / len(whole.encode()) > 0.35


def test_tokens_that_stand_beside_the_tokenizer_count(tmp_path: Path) -> None:
    """As in `runtime/text.py`, so that what is calibrated is what runs."""
    checkpoint = Checkpoint.open(tiny_checkpoint())
    texts = checkpoint.text_files()
    beside = TextFile(tmp_path / "added_tokens.json", json.dumps({"zz": 512}).encode())
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join([json.dumps({"text": "a zz b " * 40})] * 2), encoding="utf-8")
    request = SampleRequest(file=file, samples=2, sequence_length=32)
    config = replace(checkpoint.config, vocab_size=513)
    plain, added = (request.read(config, files)[0] for files in (texts, {**texts, beside.path.name: beside}))
    (token,) = Tokenizer.from_files({**texts, beside.path.name: beside}).encode("zz", add_special_tokens=False)
    assert token in added.tolist()
    assert token not in plain.tolist()
