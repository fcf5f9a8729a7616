"""Stop strings of `Session.generate`, against a search of the whole text of the same tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from support.cyclic_text import CyclicTokenizer

from sala_export.errors import SessionError, UnsupportedError
from sala_export.runtime import _native
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session


@pytest.fixture
def session(model: Model) -> Session:
    session = Model(model._native, CyclicTokenizer()).session(max_context=512)
    session.prefill([5, 17, 42])
    return session


def searched(text: str, strings: Sequence[str]) -> str:
    """The text before the first place where one of the strings begins."""
    return text[: min((text.find(each) for each in strings if each in text), default=len(text))]


CASES = [
    ["ß"],
    ["世界"],
    ["界! O", "never"],
    ["<end>", "end"],
    ["two <", "two"],
    ["\nfour", "END", "three\nfive"],
    ["ENDGr"],
    ["never", "Grüßen"],
    ["G"],
    [],
]


@pytest.mark.parametrize("strings", CASES, ids=repr)
@pytest.mark.parametrize("count", [0, 7, 22, 40])
def test_text_ends_before_the_first_stop_string(session: Session, strings: list[str], count: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": count, "stop_tokens": []}
    whole = "".join(session.generate(**options))
    session.reset()
    session.prefill([5, 17, 42])
    pieces = list(session.generate(**options, stop_strings=strings))
    expected = searched(whole, strings)
    assert "".join(pieces) == expected
    assert all(pieces)
    assert session.finish_reason == ("stop_string" if len(expected) < len(whole) else "max_new_tokens")


def test_context_keeps_the_tokens_of_the_stop_string(session: Session) -> None:
    assert "".join(session.generate(stop_strings="<end>", stop_tokens=[])) == "Grüße, 世界! One two "
    bytes_generated = len("Grüße, 世界! One two <end>".encode())
    assert session.position == 3 + (bytes_generated + 1) // 2
    whole = session.tokens.tolist()
    session.reset()
    session.prefill([5, 17, 42])
    ids = list(session.generate_tokens(stop_strings="<end>", stop_tokens=[]))
    assert [5, 17, 42, *ids] == whole == session.tokens.tolist()
    assert session.finish_reason == "stop_string"
    assert list(session.generate_tokens(max_new_tokens=2, stop_tokens=[])) != []
    assert session.finish_reason == "max_new_tokens", "of the last generation"


def test_pieces_come_out_as_soon_as_they_are_decided(session: Session) -> None:
    stream = session.generate(stop_strings=["One three"], stop_tokens=[])
    seen = ""
    while "One" not in seen:
        seen += next(stream)
    assert session.position == 3 + (len("Grüße, 世界! One tw".encode()) + 1) // 2, "held back up to the t of two"


def test_matcher_equals_a_search_however_the_text_is_cut() -> None:
    choose = random.Random(5)
    for _ in range(3000):
        letters = choose.choice(["ab", "aé\n", "日本語a", "\U0001f600\U0001f601x"])
        text = "".join(choose.choices(letters, k=choose.randrange(40)))
        strings = ["".join(choose.choices(letters, k=choose.randint(1, 5))) for _ in range(choose.randint(1, 4))]
        matcher, shown, at = _native.StopStrings(strings), "", 0
        while at < len(text):
            size = choose.randint(0, 6)
            shown += matcher.push(text[at : at + size])
            at += size
        shown += matcher.finish()
        assert shown == searched(text, strings)
        assert matcher.found == (shown != text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "expected a text that is not empty"),
        (["a", ""], "expected a text that is not empty"),
        (["a\ud800"], "expected a text"),
        ([b"a"], "is b'a', expected a text"),
        (b"a", "expected a text or a list of texts"),
        (5, "stop_strings is 5, expected a text or a list"),
        ({"a": 1}, "expected a text or a list of texts"),
        ([None], "is None, expected a text"),
        (["a" * 1025], "stop string 0 has 1025 bytes, expected 1 to 1024"),
        (["a"] * 65, "there are 65 stop strings, expected at most 64"),
    ],
)
def test_wrong_stop_strings_are_refused_at_once(session: Session, model: Model, wrong: Any, message: str) -> None:
    for call in (model.check_generate, session.generate, session.generate_tokens):
        with pytest.raises(SessionError, match=message) as error:
            call(stop_strings=wrong)
        assert "\n" not in str(error.value)
    assert session.position == 3


def test_answers_of_a_batch_end_at_stop_strings_and_keep_what_generate_keeps(model: Model) -> None:
    spelling = Model(model._native, CyclicTokenizer())
    sessions = [spelling.session(max_context=512) for _ in range(3)]
    for count, session in enumerate(sessions, 3):
        session.prefill([5, 17, 42, 9, 11][:count])
    alone = sessions[2].fork()
    expected = "".join(alone.generate(stop_strings="<end>", stop_tokens=[]))
    answers = ["", "", ""]
    limits: dict[str, Any] = {"stop_strings": "<end>", "stop_tokens": []}
    for pieces in spelling.generate_batch(sessions, **limits):
        answers = [answer + piece for answer, piece in zip(answers, pieces, strict=True)]
    assert answers == [expected] * 3
    assert [session.finish_reason for session in sessions] == ["stop_string"] * 3
    assert sessions[2].tokens.tolist() == alone.tokens.tolist()
    # Text that was held back comes at the end of an answer that stops for another reason.
    limits = {"stop_strings": "never", "stop_tokens": [], "max_new_tokens": 3}
    again = "".join("".join(pieces) for pieces in spelling.generate_batch(sessions[:1], **limits))
    assert again == "".join(sessions[1].generate(**limits))


def test_stop_strings_come_in_any_list(session: Session) -> None:
    for strings in ("One", ("One",), {"One"}, iter(["One"]), ["One", "never"]):
        session.reset()
        session.prefill([5])
        assert "".join(session.generate(stop_strings=strings, stop_tokens=[])) == "Grüße, 世界! "  # type: ignore[arg-type]


def test_stop_strings_need_a_tokenizer(model: Model) -> None:
    session = model.session(max_context=64)
    session.prefill([5])
    with pytest.raises(UnsupportedError, match="no tokenizer"):
        session.generate_tokens(stop_strings="a")
    assert next(session.generate_tokens(stop_strings=[], stop_tokens=[])) < model.vocab_size
