"""What a template writes around texts that it cannot be given: proven by trial, or refused by the template's file."""

from __future__ import annotations

import time

import pytest
from support.chat_templates import CHATML, HEADERS_AND_DATE, INST, STRIPPED_THOUGHTS, THINKING, TOOL_CALLS, TURNS

from sala_export.errors import SessionError
from sala_export.runtime.chat import ChatTemplate

ORIGIN = "a.sala/text/chat_template.jinja"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
LONG = "A long text. \u4f60\u597d\n" * 3


def chat(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL, ORIGIN)


def with_content(expression: str) -> ChatTemplate:
    """ChatML that writes this where the message's content stands."""
    return chat(CHATML.replace("message['content']", f"({expression})"))


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("source", [CHATML, THINKING, TURNS, HEADERS_AND_DATE])
def test_long_prompt_goes_between_what_the_template_writes(source: str, goes_on: bool) -> None:
    template = chat(source)
    before, after, trims = template.around_prompt(goes_on=goes_on, beginning=LONG)
    inside = LONG.strip() if trims else LONG
    assert before + inside + after == template.turn(LONG, goes_on=goes_on)
    assert trims == (source in (TURNS, HEADERS_AND_DATE))


def test_system_message_and_variables_stand_around_a_long_prompt() -> None:
    template = chat(THINKING)
    options = {"system": "Be brief.", "enable_thinking": False}
    before, after, _ = template.around_prompt(goes_on=False, **options)
    assert before + LONG + after == template.turn(LONG, goes_on=False, **options)
    assert "Be brief." in before
    assert "<think>" in after


@pytest.mark.parametrize(
    "expression",
    [
        "message.content ~ ('' if message.content.endswith('/fast') else '/slow')",
        "message.content ~ ('!' if message.content.startswith('Dear') else '')",
        "message.content ~ ('!' if '/think' in message.content else '')",
        "message.content ~ ('!' if message.content | length > 1000 else '')",
        "message.content ~ ('!' if message.content | length > 2000000 else '')",
        "message.content ~ ('!' if message.content | length is odd else '')",
        "message.content ~ ('!' if message.content.split()[0] == 'go' else '')",
        "message.content ~ ('!' if message.content.split('/')[1:2] == ['fast'] else '')",
        "message.content ~ ('!' if message.content.splitlines() | length > 20 else '')",
        "message.content ~ ('!' if message.content[-1] in '.?!' else '')",
        "message.content ~ ('!' if message.content[0].isupper() else '')",
        "message.content ~ ('!' if message.content.isascii() else '')",
        "message.content ~ (raise_exception('no images') if '<image>' in message.content else '')",
        "message.content ~ ('!' if message.content.count('zq') > 3 else '')",
        "message.content ~ ('!' if message.content.split('zq') | length > 3000 else '')",
        "message.content ~ ('!' if ('/fa' ~ 'st') in message.content else '')",
        "message.content ~ ('!' if ('/' + 'fa' + 'st') in message.content else '')",
        "message.content ~ ('!' if ['go', 'on', 1] | join('-') ~ 2 in message.content else '')",
        "message.content ~ ('!' if message.content.startswith('-'.join(('go', 'on'))) else '')",
        "message.content ~ ('!' if ('%s%s' | format('/fa', 'st')) in message.content else '')",
        "message.content ~ ('!' if message.content | length > 6000000 else '')",
        "message.content ~ ('!' if message.content | length > 6000 * 10 ** 3 else '')",
        "message.content ~ ('!' if message.content | length / 4 > 1500000 else '')",
        "message.content ~ ('!' if message.content.count('zq') > 4000000 else '')",
        "message.content | upper",
        "message.content.rstrip()",
        "message.content | replace('<|im_end|>', '')",
        "message.content[:5000]",
        "message.content | tojson",
        "message.content ~ message.content",
        "'nothing'",
    ],
)
def test_template_that_looks_at_a_long_prompt_is_refused(expression: str) -> None:
    template = with_content(f"{expression} if message.role == 'user' else message.content")
    for goes_on in (False, True):
        with pytest.raises(SessionError, match="looks at the text of the prompt or changes it") as caught:
            template.around_prompt(goes_on=goes_on)
        assert str(caught.value).startswith(ORIGIN)


def test_words_of_the_prompt_and_of_the_options_are_tried() -> None:
    template = with_content("message.content ~ ('!' if word in message.content else '')")
    assert template.around_prompt(goes_on=False, word="").after.startswith("!")
    with pytest.raises(SessionError, match="looks at"):
        template.around_prompt(goes_on=False, word="xyzzy")
    with pytest.raises(SessionError, match="looks at"):
        with_content("message.content ~ ('!' if message.content < 'B' else '')").around_prompt(
            goes_on=False, beginning="Z"
        )


@pytest.mark.parametrize(
    "before",
    [
        "{% set word = '/fa' %}{% set word = word ~ 'st' %}",
        "{% set word %} /fast {% endset %}{% set word = word.strip() %}",
        "{% macro made() %}/fast{% endmacro %}{% set word = made() %}",
    ],
)
@pytest.mark.parametrize("goes_on", [False, True])
def test_texts_that_the_template_makes_are_tried(before: str, goes_on: bool) -> None:
    source = before + CHATML + "{% if word in messages[-1].content %}!{% endif %}"
    with pytest.raises(SessionError, match="looks at"):
        chat(source).around_prompt(goes_on=goes_on)


def test_numbers_that_no_length_is_compared_with_are_no_ground_to_refuse() -> None:
    budgets = "{% set budgets = {0: 0, 1024: 256, 16384: 1024} %}"
    budgets += "{% if false %}{{ 3 * 1024 ** 2 + 2 ** -1 - 1 / 0 }}{% endif %}"
    assert chat(budgets + CHATML).around_prompt(goes_on=False) == chat(CHATML).around_prompt(goes_on=False)
    limit = "{% if messages[-1].content | length > limit %}!{% endif %}"
    with pytest.raises(SessionError, match="looks at"):
        chat(CHATML + limit).around_prompt(goes_on=False, limit=6_000_000)


def test_numbers_that_are_too_large_to_compute_are_refused_at_once() -> None:
    for number in ("9 ** 9 ** 9", "10.0 ** 60 ** 64", "1e999 - 1e999", "'ab' * 10 ** 10"):
        started = time.process_time()
        with pytest.raises(SessionError, match="looks at"):
            chat(CHATML + f"{{% if false %}}{{{{ {number} }}}}{{% endif %}}").around_prompt(goes_on=False)
        assert time.process_time() - started < 2


def test_template_that_refuses_every_prompt_tells_why() -> None:
    with pytest.raises(SessionError, match="System role not supported"):
        chat(TURNS).around_prompt(goes_on=False, system="Be brief.")


def test_hostile_template_is_tried_for_seconds_at_most() -> None:
    texts = "".join(f"{{% if 'text {i}' in messages[0].content %}}{{% endif %}}" for i in range(200))
    started = time.process_time()
    with pytest.raises(SessionError):
        chat(texts + "{{ (messages[0].content * 20) | length }}" * 20).around_prompt(goes_on=False)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(("source", "end"), [(CHATML, "<|im_end|>\n"), (THINKING, "<|im_end|>\n"), (INST, " </s>")])
def test_turn_goes_on_behind_an_answer(source: str, end: str) -> None:
    template = chat(source)
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    whole = template.render([question, answer, question | {"content": "How?"}])
    assert template.turn("How?", goes_on=True) == end + whole.partition(f"So.{end}")[2]


@pytest.mark.parametrize(
    "expression",
    [
        "message.content ~ ('!' if 'Sorry' in message.content else '')",
        "message.content ~ loop.index",
        "message.content ~ ('!' if messages[0].content | length > 1000 else '')",
        "message.content ~ ('!' if messages[0].content.count('zq') > 3 else '')",
        "message.content ~ ('!' if ('%s%s' | format('/fa', 'st')) in messages[0].content else '')",
        "message.content ~ ('!' if '<think>' in messages[1].content else '')",
        "message.content ~ messages[0].content",
    ],
)
def test_turn_that_depends_on_the_texts_before_is_refused(expression: str) -> None:
    with pytest.raises(SessionError, match=r"by the texts of those before it.*use `sala-export chat`") as caught:
        with_content(expression).turn("How?", goes_on=True)
    assert str(caught.value).startswith(ORIGIN)


def test_template_that_swallows_answers_cannot_go_on() -> None:
    template = chat("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    assert template.turn("hello", goes_on=False) == "hello"
    for go_on in (template.around_prompt, lambda goes_on: template.turn("hello", goes_on=goes_on)):
        with pytest.raises(SessionError, match="no conversation can go on"):
            go_on(goes_on=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [(CHATML, []), (THINKING, ["thought"]), (STRIPPED_THOUGHTS, ["thought"]), (TOOL_CALLS, ["system message"])],
)
def test_what_a_state_may_hold_otherwise_is_said(source: str, words: list[str]) -> None:
    notes = chat(source).notes_on_states()
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))
