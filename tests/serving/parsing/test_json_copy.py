"""JSON is copied like Python's own reader understands it, and can be closed wherever it breaks off."""

from __future__ import annotations

import json
import random
from typing import Any, NoReturn

import pytest

from sala_export.serving.parsing.json_copy import DEPTH_LIMIT, JsonCopy, is_json, json_of
from sala_export.serving.parsing.reader import Reader, Steps

DOCUMENT = r'{"a": [1, -2.5e3, true, null, {"k\"\u00e9": "v\\\/\ud83d\ude00"}, [], {}], "b" : "x y", "": {"c": [[0]]}}'


def copied(text: str, *, size: int = 1) -> tuple[bool, str, str]:
    """Whether a text is a value, what was copied, and what closes it."""
    reader = Reader()
    pieces: list[str] = []
    copy = JsonCopy(reader, pieces.append)
    done = []

    def steps() -> Steps[None]:
        done.append((yield from copy.copy()))

    running = steps()
    for start in range(0, len(text), size):
        reader.feed(text[start : start + size])
        next(running, None)
    reader.end()
    next(running, None)
    return done[0], "".join(pieces), copy.closing


def accepts(text: str) -> bool:
    """Python's judgement of a text, without the words that JSON does not have."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(word)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def test_mutated_documents_are_judged_as_python_judges_them() -> None:
    rng = random.Random(3)
    judged = []
    for _ in range(4000):
        characters = list(DOCUMENT)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(characters))
            characters[place : place + rng.randrange(3)] = rng.choice(
                ['"', "{", "]", ",", ":", "0", "-", "e", " ", "\\", "\n"]
            )
        text = "".join(characters)
        judged.append(is_json(text))
        assert judged[-1] == accepts(text), text
    assert 200 < sum(judged) < 3800


@pytest.mark.parametrize(
    "text", ["", " ", "1", " -0.5e+3 ", "01", "1.", ".5", "+1", "tr", "nul", "NaN", '"a', "{}{}", "[1,]"]
)
def test_single_values_are_judged_as_python_judges_them(text: str) -> None:
    assert is_json(text) == accepts(text)


def part_of(value: Any, whole: Any) -> bool:
    """True if a value is the beginning of another."""
    if isinstance(value, dict):
        return isinstance(whole, dict) and all(key in whole and part_of(value[key], whole[key]) for key in value)
    if isinstance(value, list):
        return isinstance(whole, list) and len(value) <= len(whole) and all(map(part_of, value, whole))
    return whole.startswith(value) if isinstance(value, str) else value == whole


def test_document_that_breaks_off_anywhere_can_be_closed() -> None:
    whole = json.loads(DOCUMENT)
    for length in range(1, len(DOCUMENT)):
        for tail in ("", "\x00!"):
            done, text, closing = copied(DOCUMENT[:length] + tail)
            assert not done
            value = json.loads(text + closing)
            if not tail and "\\ud83d" not in text[-6:]:
                assert part_of(value, whole), DOCUMENT[:length]
    assert copied(DOCUMENT) == (True, DOCUMENT, "")


def test_text_is_handed_on_as_soon_as_it_can_be_closed() -> None:
    expected = {
        '{"ab": "': '{"ab": "',
        '{"ab"': "{",
        '{"ab": 12': "{",
        '{"ab": 12,': '{"ab": 12',
        '{"ab": ["x': '{"ab": ["x',
    }
    for text, handed_on in expected.items():
        assert copied(text)[1] == handed_on


@pytest.mark.parametrize(
    ("written", "value"),
    [(r'"\d+\."', r"\d+\."), ('"a\nb\x01"', "a\nb\x01"), (r'"\u12"', r"\u12"), (r'"\uD8"', r"\uD8"), (r'"\'"', r"\'")],
)
def test_what_models_get_wrong_in_texts_is_put_right(written: str, value: str) -> None:
    done, text, _ = copied(written)
    assert done
    assert json.loads(text) == value
    assert not is_json(written)


def test_brackets_are_followed_to_the_limit() -> None:
    deepest = "[" * DEPTH_LIMIT + "]" * DEPTH_LIMIT
    assert copied(deepest) == (True, deepest, "")
    done, text, closing = copied(f"[{deepest}]")
    assert not done
    assert text + closing == deepest


def test_json_of_halves_of_surrogate_pairs_can_be_encoded() -> None:
    text = json_of({"\ud83d\ude00": ["\ud800", "é"]})
    assert json.loads(text.encode()) == {"\U0001f600": ["\ud800", "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_of(float("inf"))
