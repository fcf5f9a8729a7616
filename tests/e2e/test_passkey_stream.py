"""Needles in streamed prompts, found through the exported graph, the CPU operators and the C++ runtime."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from support.passkey import (
    UNKNOWN,
    in_pieces,
    needle_positions,
    passkey_config,
    passkey_prompt,
    write_passkey_checkpoint,
)
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-passkey-bundles-")
PIECES = (1, 777, 5000, 64)


@functools.cache
def passkey_bundle(topk: int) -> Path:
    config = passkey_config(num_attention_heads=4, topk=topk)
    folder = Path(_FOLDER.name)
    checkpoint = write_passkey_checkpoint(folder / f"checkpoint-{topk}", config)
    return write_cpu_bundle(checkpoint, folder / f"topk-{topk}.sala")


def load(topk: int) -> Model:
    return sala_export.load(passkey_bundle(topk), threads=2)


def ask(session: Session, question: object, context: int) -> int:
    return int(session.prefill(question, context_length=context).argmax())


@pytest.mark.parametrize("length", [8192, 65536])
def test_five_needles_of_a_streamed_prompt_are_found(length: int) -> None:
    tokens, needles = passkey_prompt(length, needle_positions(length))
    context = length + 2 * len(needles)
    session = load(topk=8).session(max_context=context)
    session.prefill(in_pieces(tokens, PIECES))
    assert session.position == length
    assert [ask(session, needle.question(), context) for needle in needles] == [needle.value for needle in needles]


def test_without_selected_blocks_only_the_ends_are_found() -> None:
    length = 8192
    tokens, needles = passkey_prompt(length, needle_positions(length))
    context = length + 2 * len(needles)
    session = load(topk=2).session(max_context=context)
    session.prefill(in_pieces(tokens, PIECES))
    answers = [ask(session, needle.question(), context) for needle in needles]
    assert answers == [needles[0].value, UNKNOWN, UNKNOWN, UNKNOWN, needles[-1].value]


def test_restored_session_finds_what_was_read_before(tmp_path: Path) -> None:
    length = 4096
    tokens, needles = passkey_prompt(length, needle_positions(length))
    model = load(topk=8)
    session = model.session(max_context=length)
    session.prefill(in_pieces(tokens, PIECES))
    session.save(tmp_path / "read.state")
    for needle in needles:
        restored = model.restore(tmp_path / "read.state", max_context=length + 16)
        restored.prefill(needle.question())
        assert list(restored.generate_tokens(max_new_tokens=1)) == [needle.value]
