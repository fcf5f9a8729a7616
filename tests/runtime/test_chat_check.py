"""A chat template that will not do is told when the bundle is built, in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.chat_templates import PUBLIC_STYLES
from support.checkpoints import copy_checkpoint, edit_json, tiny_checkpoint

from sala_export.building import pipeline
from sala_export.building.pipeline import build_bundle
from sala_export.building.requests import BuildRequest, ModelRequest
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import BuildError
from sala_export.files import TextFile
from sala_export.runtime.chat_check import chat_faults


def faults(field: object) -> list[str]:
    content = json.dumps({"chat_template": field, "bos_token": "<s>", "eos_token": "</s>"}).encode()
    return chat_faults({"tokenizer_config.json": TextFile(Path("tokenizer_config.json"), content)})


@pytest.mark.parametrize("style", PUBLIC_STYLES)
def test_templates_of_checkpoints_have_no_fault(style: str) -> None:
    assert faults(PUBLIC_STYLES[style]) == []


def test_checkpoint_without_template_has_no_fault() -> None:
    assert chat_faults({}) == []
    assert faults(None) == []


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("{% generation %}", "the chat template does not compile"),
        ("{{ messages[0].content | no_such_filter }}", "does not compile: No filter named 'no_such_filter'"),
        ("{{ messages[5].content }}", "refuses the messages"),
        ("{% if messages | length > 1 %}{{ raise_exception('one question') }}{% endif %}", "one question"),
        ("{{ 'a' * 10 ** 10 }}", "too much text"),
        ([{"name": "default", "template": "a"}, {"name": "rag", "template": "{% if %}"}], "does not compile"),
        ([{"template": "a"}], "chat_template[0].name is not text"),
    ],
)
def test_fault_of_a_template_is_one_line(field: object, words: str) -> None:
    (fault,) = faults(field)
    assert fault.startswith("tokenizer_config.json: ")
    assert words in fault
    assert "\n" not in fault


def test_template_for_documents_need_not_answer_a_greeting() -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "rag", "template": "{{ documents[0] }}"}]
    assert faults(templates) == []


def test_build_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise BuildError("far enough")

    checkpoint = copy_checkpoint(tiny_checkpoint(), tmp_path / "checkpoint")
    edit_json(checkpoint / "tokenizer_config.json", lambda fields: fields.update(chat_template="{% for %}"))
    engine = EngineRequest.from_options(load_target("rtx5090"), max_context=4096, prefill_chunk=256)
    request = BuildRequest(model=ModelRequest(model=str(checkpoint)), engine=engine, output=tmp_path / "out.sala")
    monkeypatch.setattr(pipeline, "_place_weights", stop)
    with caplog.at_level(logging.WARNING), pytest.raises(BuildError, match="far enough"):
        build_bundle(request)
    (line,) = (record.getMessage() for record in caplog.records if "chat template" in record.getMessage())
    assert line.startswith(f"{checkpoint}/tokenizer_config.json: the chat template does not compile: ")
