"""Text of tasks: what begins it, how it stops, and conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.text_bundles import tiny_text_bundle

from sala_export.errors import RequestError, SessionError, UnsupportedError
from sala_export.interop.task_text import TaskText
from sala_export.runtime.text import Tokenizer

MESSAGES = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": " There are "}]


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_directory(folder / "text")


@pytest.fixture(scope="module")
def text() -> TaskText:
    return TaskText(tokenizer_of(tiny_text_bundle()), adds_beginning=True, chat_variables={})


def test_text_begins_once(text: TaskText) -> None:
    plain = text.encode("Hello", add_special_tokens=False)
    assert text.beginning == (1,)
    assert text.encode("Hello") == [1, *plain]
    assert text.encode("<s>Hello") == [1, *plain]
    assert text.encode("") == []
    bare = TaskText(tokenizer_of(tiny_text_bundle()), adds_beginning=False, chat_variables={})
    assert bare.encode("Hello") == plain


def test_stop_string_that_spells_a_special_token_is_a_token(text: TaskText) -> None:
    ends = text.encode("<|im_end|></s>", add_special_tokens=False)
    assert text.stop_tokens(["\n", "<|im_end|>", "a", "</s>", "</s> "]) == ends


def test_conversation_ends_where_the_model_goes_on(text: TaskText) -> None:
    turn = "<s><|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert text.render(MESSAGES[:1], add_generation_prompt=True) == turn
    assert text.render(MESSAGES, add_generation_prompt=False) == turn + " There are"
    with pytest.raises(SessionError, match="the chat template refuses the messages"):
        text.render([{"role": "user"}], add_generation_prompt=True)


def test_template_that_is_not_there_is_named(text: TaskText) -> None:
    assert "<|im_start|>" in text.choose_template(None)
    with pytest.raises(RequestError, match="there is no chat template 'rag'"):
        text.choose_template("rag")
    tokenizer = tokenizer_of(tiny_text_bundle())
    tokenizer.chat = None
    with pytest.raises(UnsupportedError, match="no chat template: leave out --apply_chat_template"):
        TaskText(tokenizer, adds_beginning=True, chat_variables={}).render(MESSAGES, add_generation_prompt=True)


def test_digest_tells_variables_apart(text: TaskText) -> None:
    tokenizer = tokenizer_of(tiny_text_bundle())
    digests = {
        TaskText(tokenizer, adds_beginning=True, chat_variables=variables).template_digest
        for variables in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    }
    assert len(digests) == 3
    assert text.template_digest in digests
