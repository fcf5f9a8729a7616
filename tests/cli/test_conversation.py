"""The context of a conversation is what the template writes for its messages, and no more runs than has to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from support.chat_templates import CHATML, PUBLIC_STYLES, THINKING
from support.tokenizer_files import byte_level, sentencepiece

from sala_export.cli.chat_options import Chat
from sala_export.cli.conversation import Conversation
from sala_export.errors import SessionError
from sala_export.runtime.chat import ChatTemplate
from sala_export.runtime.session import Session
from sala_export.runtime.text import Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>"}


class Context:
    """What a session holds, without a model."""

    def __init__(self, max_context: int) -> None:
        self.max_context = max_context
        self.ids: list[int] = []

    @property
    def position(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> NDArray[np.int32]:
        return np.array(self.ids, np.int32)

    def reset(self) -> None:
        self.ids.clear()


def inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that does not begin one, so that its first word has no space that it does not show."""
    before = tokenizer.encode("the\n", add_special_tokens=False)
    whole = tokenizer.encode(f"the\n{text}", add_special_tokens=False)
    assert whole[: len(before)] == before
    return whole[len(before) :]


class Talk:
    """A conversation whose answers are given."""

    def __init__(self, tokenizer: Tokenizer, source: str, *, system: str | None = None, room: int = 4096) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(source, SPECIAL, "chat_template.jinja")
        self.context = Context(room)
        self.stop = tokenizer.encode("<|im_end|>", add_special_tokens=False)
        chat = Chat(self.template, system, {})
        self.conversation = Conversation(cast("Session", self.context), tokenizer, chat, self.stop)

    def ask(self, question: str) -> tuple[int, int]:
        """How many tokens run, and how many of them again."""
        ids, again = self.conversation.ask(question)
        self.context.ids += ids
        return len(ids), again

    def answer(self, *tokens: list[int], text: str) -> None:
        for each in tokens:
            self.context.ids += each
        self.conversation.answered(text)

    def says(self, text: str) -> None:
        """Answer with the tokens of a text, and with the token that ends it."""
        self.answer(inside(self.tokenizer, text), self.stop, text=text)

    def written(self, *texts: str) -> list[int]:
        """Ids of what the template writes for questions and answers in turn."""
        roles = ("user", "assistant")
        messages: list[dict[str, Any]] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        if self.conversation.system is not None:
            messages.insert(0, {"role": "system", "content": self.conversation.system})
        return self.tokenizer.encode(self.template.render(messages), add_special_tokens=False)


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("text")
    (folder / "tokenizer.json").write_text(json.dumps(request.param()), encoding="utf-8")
    return Tokenizer.from_directory(folder)


def test_only_what_is_new_runs(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML, system="Be brief.")
    assert talk.ask("the quick fox") == (len(talk.written("the quick fox")), 0)
    talk.says("hello world")
    before = talk.context.position
    ran, again = talk.ask("don't stop")
    whole = talk.written("the quick fox", "hello world", "don't stop")
    assert (ran, again) == (len(whole) - before, 0)
    assert talk.context.ids == whole


def test_answer_in_other_tokens_stays_as_the_model_wrote_it(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML)
    talk.ask("the")
    talk.answer(*(inside(tokenizer, letter) for letter in "quick"), talk.stop, text="quick")
    before = list(talk.context.ids)
    assert talk.ask("fox")[1] == 0
    assert talk.context.ids[: len(before)] == before
    whole = talk.written("the", "quick", "fox")
    assert len(talk.context.ids) > len(whole)
    assert tokenizer.decode(talk.context.ids) == tokenizer.decode(whole)


def test_template_that_leaves_thoughts_out_has_the_conversation_run_again(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, THINKING)
    talk.ask("the quick fox")
    talk.says("<think>\ntell\n</think>\n\nhello")
    before = talk.context.position
    ran, again = talk.ask("stop")
    assert again == before
    assert talk.context.ids == talk.written("the quick fox", "hello", "stop")
    assert ran == talk.context.position


@pytest.mark.parametrize("style", PUBLIC_STYLES)
def test_context_is_what_any_template_writes(tokenizer: Tokenizer, style: str) -> None:
    talk, said = Talk(tokenizer, PUBLIC_STYLES[style]), []
    for question, answer in (
        ("the quick fox", " hello\n"),
        ("don't  stop", "world"),
        ("\u4f60\u597d", "<think>x</think>y"),
    ):
        talk.ask(question)
        said.append(question)
        assert talk.context.ids == talk.written(*said)
        talk.says(answer)
        said.append(answer)


def test_interrupted_prompt_and_answer_leave_no_rest(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML)
    talk.ask("the quick fox")
    del talk.context.ids[3:]
    talk.ask("another one")
    assert talk.context.ids == talk.written("another one")
    talk.answer(inside(tokenizer, "hello wor"), text="hello wor")
    assert talk.ask("go on")[1] == 0
    assert tokenizer.decode(talk.context.ids) == tokenizer.decode(talk.written("another one", "hello wor", "go on"))


def test_space_that_the_answer_does_not_show_runs_again(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML)
    talk.ask("the")
    talk.answer(inside(tokenizer, " fox"), talk.stop, text="fox")
    assert talk.ask("stop")[1] > 0
    assert talk.context.ids == talk.written("the", "fox", "stop")


def test_half_a_character_runs_again_as_the_text_that_was_shown(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML)
    talk.ask("the")
    half = tokenizer.encode("\U0001f642", add_special_tokens=False)[:-1]
    talk.answer(half, text="\N{REPLACEMENT CHARACTER}")
    assert talk.ask("fox")[1] > 0
    assert talk.context.ids == talk.written("the", "\N{REPLACEMENT CHARACTER}", "fox")


def test_marker_inside_an_answer_is_not_taken_for_its_text(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML)
    talk.ask("the")
    marker = tokenizer.encode("<|im_start|>", add_special_tokens=False)
    talk.answer(marker, tokenizer.encode("fox", add_special_tokens=False), talk.stop, text="fox")
    talk.ask("quick")
    assert talk.context.ids == talk.written("the", "fox", "quick")


def test_system_message_may_change_and_reset_forgets(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML)
    talk.ask("the")
    talk.says("fox")
    talk.conversation.system = "hello"
    talk.ask("stop")
    assert talk.context.ids == talk.written("the", "fox", "stop")
    talk.conversation.reset()
    assert talk.context.ids == []
    assert talk.ask("the")[1] == 0
    assert talk.context.ids == talk.written("the")


def test_conversation_that_does_not_fit_changes_nothing(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, CHATML, room=80)
    talk.ask("the")
    talk.says("fox")
    before = list(talk.context.ids)
    with pytest.raises(SessionError, match="the context has room for 80: /reset begins a new one"):
        talk.ask("the quick brown fox " * 20)
    assert talk.context.ids == before
    assert talk.ask("stop")[1] == 0


def test_refused_message_changes_nothing(tokenizer: Tokenizer) -> None:
    source = CHATML + "{% if messages[-1].content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
    talk = Talk(tokenizer, source)
    talk.ask("the")
    talk.says("fox")
    before = list(talk.context.ids)
    with pytest.raises(SessionError, match="not that"):
        talk.ask("no")
    assert talk.context.ids == before
    assert talk.ask("stop")[1] == 0
