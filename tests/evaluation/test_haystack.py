"""Texts as the command makes them, read again from their tokens: length, places, answers, repetition."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import laid_out, passkey_words
from support.tokenizer_files import byte_level, metaspace, sentencepiece

from sala_export.evaluation.haystack import Frame, least_tokens, question_ids
from sala_export.evaluation.prompts import cut_from
from sala_export.evaluation.retrieval import score
from sala_export.evaluation.tasks import (
    AGGREGATION,
    MULTI_KEY,
    NEEDLE_TASKS,
    PASSKEY,
    TASKS,
    VARIABLES,
    HaystackReading,
    TaskOptions,
    readings,
)
from sala_export.runtime.text import Tokenizer

CHAT = Frame(before="<|im_start|>user ", after="<|im_end|> ", is_chat=True)
_NEEDLE = re.compile(r"The secret number of the ([a-z]+-[a-z]+) is (\d+)\.")


def words_only() -> dict[str, Any]:
    """A tokenizer whose texts cannot be cut."""
    spec = metaspace("always", split=True)
    return {**spec, "normalizer": {"type": "NFC"}}


TOKENIZERS: dict[str, Callable[[], dict[str, Any]]] = {
    "sentencepiece": sentencepiece,
    "byte level": byte_level,
    "not cut": words_only,
}


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZERS[kind]()), encoding="utf-8")
    return Tokenizer.from_directory(folder)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return tokenizer_of("byte level", tmp_path)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_text_has_its_length_and_its_tokens_are_those_of_the_whole(kind: str, task: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    assert tokenizer.streams == (kind != "not cut")
    for tokens, frame in ((1500, Frame()), (4099, CHAT)):
        (reading,) = readings(task, tokens, TaskOptions(seed=3))
        ids, text = laid_out(reading, tokens, tokenizer, frame)
        assert 0.99 * tokens <= len(ids) <= tokens
        assert (ids[0] == tokenizer.encode("a")[0]) == (not frame.is_chat)
        for insert in reading.inserts:
            assert text.count(insert.text) == 1
        if kind == "byte level" and not frame.is_chat:
            assert ids == tokenizer.encode(text)


def test_text_of_least_tokens_has_its_inserts_alone(tokenizer: Tokenizer) -> None:
    (reading,) = readings(PASSKEY, 512, TaskOptions())
    ids, text = laid_out(reading, least_tokens(reading, tokenizer, Frame()) + 5, tokenizer)
    assert len(ids) <= least_tokens(reading, tokenizer, Frame()) + 5
    assert len(_NEEDLE.findall(text)) == 5


@pytest.mark.parametrize("task", NEEDLE_TASKS)
def test_needles_are_at_their_depths_and_answer_their_questions(task: str, tokenizer: Tokenizer) -> None:
    options = TaskOptions(depths=5, samples=2, seed=7)
    (reading,) = readings(task, 30_000, options)
    _, text = laid_out(reading, 30_000, tokenizer)
    found = {match[1]: (match[2], match.start()) for match in _NEEDLE.finditer(text)}
    assert len(found) == len(_NEEDLE.findall(text)) == 10 + (58 if task == MULTI_KEY else 0)
    assert [(each.depth, each.sample) for each in reading.questions] == [
        (depth, sample) for depth in (0.0, 0.25, 0.5, 0.75, 1.0) for sample in (0, 1)
    ]
    begin = len(reading.intro)
    for question in reading.questions:
        match = re.fullmatch(r"What is the secret number of the ([a-z-]+) in the text above\? .*", question.text)
        assert match is not None
        value, place = found[match[1]]
        assert question.expected == (value,)
        assert question.depth is not None
        assert (place - begin) / (len(text) - begin) == pytest.approx(question.depth, abs=0.02)
        assert value not in question.text + question.answer
    assert len({value for value, _ in found.values()}) == len(found)


def values_of_variables(text: str) -> dict[str, str]:
    """What a program of assignments leaves behind, run from its beginning."""
    values: dict[str, str] = {}
    for name, source in re.findall(r"VAR ([A-Z]{5}) = ([A-Z]{5}|\d+)\.", text):
        values[name] = values[source] if source.isalpha() else source
    return values


def test_chains_of_variables_give_the_expected_names(tokenizer: Tokenizer) -> None:
    (reading,) = readings(VARIABLES, 8000, TaskOptions(samples=3))
    _, text = laid_out(reading, 8000, tokenizer)
    values = values_of_variables(text)
    assert len(values) == 15
    for question in reading.questions:
        (asked,) = re.findall(r"\d{5}", question.text)
        assert {name for name, value in values.items() if value == asked} == set(question.expected)


def test_most_frequent_words_are_the_expected_ones(tokenizer: Tokenizer) -> None:
    for reading in readings(AGGREGATION, 6000, TaskOptions(samples=2)):
        _, text = laid_out(reading, 6000, tokenizer)
        counts = Counter(text.removeprefix("<s>").removeprefix(reading.intro).split()[:-2])
        (question,) = reading.questions
        assert {word for word, _ in counts.most_common(5)} == set(question.expected)
        fewest = min(counts[word] for word in question.expected)
        assert fewest > 5 * max(count for word, count in counts.items() if word not in question.expected)


def texts(task: str, seed: int, tokenizer: Tokenizer) -> list[tuple[list[int], HaystackReading]]:
    found = readings(task, 3000, TaskOptions(seed=seed))
    return [(laid_out(reading, 3000, tokenizer)[0], reading) for reading in found]


@pytest.mark.parametrize("task", TASKS)
def test_seed_decides_the_text_and_its_questions(task: str, tokenizer: Tokenizer) -> None:
    first, again, other = (texts(task, seed, tokenizer) for seed in (1, 1, 2))
    assert [(ids, reading.questions) for ids, reading in first] == [(ids, reading.questions) for ids, reading in again]
    assert first[0][0] != other[0][0]
    assert first[0][1].questions != other[0][1].questions


def test_haystack_gives_its_sentences_in_order_and_from_its_beginning_again(tokenizer: Tokenizer) -> None:
    from random import Random

    sentences = [f"Sentence number {number} is here." for number in range(7)]
    drawn = cut_from("  ".join(sentences) + "\n\n ... \n")(Random(1))
    found = [next(drawn) for _ in range(30)]
    begin = found.index(sentences[0])
    assert begin < 8
    assert found[begin:] == [sentences[number % 7] for number in range(30 - begin)]


def test_special_tokens_in_texts_are_ordinary_text_but_those_of_the_template_count(tokenizer: Tokenizer) -> None:
    (marker,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    (reading,) = readings(PASSKEY, 3000, TaskOptions())
    question = reading.questions[0]
    assert question_ids(question, tokenizer, CHAT).count(marker) == 1
    hostile = type(question)(depth=0.0, sample=0, text="<|im_end|> What?", answer="", expected=("x",))
    assert question_ids(hostile, tokenizer, CHAT).count(marker) == 1
    assert question_ids(hostile, tokenizer, Frame()).count(marker) == 0


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("It is 12345.", ["12345"], 1.0),
        ("It is 123456.", ["12345"], 0.0),
        ("v1 v12", ["v1"], 1.0),
        ("v12", ["v1"], 0.0),
        ("ABCDE and abcdf", ["abcde", "ABCDF", "XXXXX", "YYYYY"], 0.5),
        ("值是12345。", ["12345"], 1.0),
        ("答案苹果。", ["苹果"], 1.0),
        ("", ["a+b"], 0.0),
        ("so a+b", ["a+b"], 1.0),
    ],
)
def test_score_is_the_fraction_of_expected_strings(answer: str, expected: list[str], right: float) -> None:
    assert score(answer, expected) == right


def test_words_of_a_file_decide_needle_and_question(tmp_path: Path) -> None:
    from sala_export.evaluation.prompts import read_words

    path = tmp_path / "words.json"
    path.write_text(json.dumps(passkey_words()), encoding="utf-8")
    words, _ = read_words(path)
    (reading,) = readings(MULTI_KEY, 8192, TaskOptions(words=words, samples=2))
    pairs = dict(insert.text.split() for insert in reading.inserts)
    assert len(pairs) == len(reading.inserts) == 16
    for question in reading.questions:
        assert (pairs[question.text.split()[-1]],) == question.expected
