"""What a chat template writes around texts that nobody can give it.

A prompt may be too long to be held, and a state holds the ids of a conversation but not its messages. Other texts then
stand in for them. The template is tried with many, among them every text that it compares others with. If what it
writes around them is always the same, it is what it would write around the real ones. Where the trials cannot tell, the
template is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import SessionError
from .chat_constants import MOST_TEXT, Constants

Message = Mapping[str, Any]
"""One message of a conversation: `role`, `content`, and further keys that the template knows."""

Render = Callable[[Sequence[Sequence[Message]]], list[str]]
"""Writes several conversations, on one budget."""

_MARK, _HEAD = "end-of-the-answer-in-the-context", "begin-of-the-answer-in-the-context"
_FILLER = "prompt-of-unknown-length"
_THOUGHT = f"<think>\n{_HEAD}\n</think>\n\n"
_LONG = 5 << 20
"""Characters of the longest text that stands in for a prompt."""
_MOST_TEXTS = 1024
_REPEATED, _MOST_REPEATED = 64, _LONG
"""How often a text is repeated at least, and the characters that all texts come to so."""
_SHORT, _MOST_PAIRED, _MOST_PAIRED_ALONE = 64, 128, 32
"""Characters of a text that is tried behind others, how many such texts there may be, and that pairs are alone."""


class Around(NamedTuple):
    """What stands before and after a prompt."""

    before: str
    after: str
    trims: bool
    """The prompt loses white space at both ends."""


def around_prompt(
    render: Render, earlier: Sequence[Message], constants: Constants, origin: str, *, beginning: str = ""
) -> Around:
    """What a template writes before and after a user's message, whatever the message.

    Args:
        earlier: messages before it. What stands up to the end of an answer of `STAND_IN_TURN` is left out.
        constants: that the template may compare the message with.
        beginning: of the message, as far as it is known.
    Raises: SessionError naming `origin` if it depends on the message, or may do so where no trial shows it.
    """
    texts = _tried(constants.texts, origin)
    repeats = _repeats(texts, constants)
    probes = [*_plain_probes(), *_probes_with(texts), *_repeating_probes(texts, repeats)]
    probes += [beginning + _FILLER] if beginning else []
    render([[*earlier, _user(_FILLER)]])  # a template that refuses every message tells why
    written = _rendered(render, [[*earlier, _user(probe)] for probe in probes]) or [""] * len(probes)
    if STAND_IN_TURN[-1] in earlier:
        written = [text.partition(_MARK)[2] for text in written]
    pairs = list(zip(written, probes, strict=True))
    trims = any(probe not in text and probe.strip() in text for text, probe in pairs)
    around = {tuple(text.split(probe.strip() if trims else probe)) for text, probe in pairs}
    ends = around.pop()
    cannot_tell = constants.number > _LONG or (constants.counts and constants.number >= repeats)
    if around or len(ends) != 2 or cannot_tell:
        raise SessionError(
            f"{origin}: the chat template looks at the text of the prompt or changes it, and this prompt is too long "
            "to be held: give a shorter one, or leave --chat out and write the markers into the prompt"
        )
    return Around(*ends, trims)


def following_turn(render: Render, prompt: str, texts: Iterable[str], origin: str) -> str:
    """What a template writes from the end of an answer on, in a conversation whose texts are not known.

    Raises: SessionError naming `origin` if it depends on them, or if the template leaves answers out.
    """
    expected = _after_answer(render([[*STAND_IN_TURN, _user(prompt)]])[0])
    if expected is None:
        raise SessionError(
            f"{origin}: the chat template leaves out what the model answered, so no conversation can go on: "
            "begin a new one"
        )
    for history in _histories(_tried(texts, origin)):
        written = _rendered(render, [[*history, _user(prompt)]])
        if written and _after_answer(written[0]) != expected:
            raise SessionError(
                f"{origin}: the chat template writes a turn by the texts of those before it, and a state does not "
                "hold them: use `sala-export chat`, which does, or leave --chat out and write the markers yourself"
            )
    return expected


def notes_on_states(render: Render) -> list[str]:
    """What a context that goes on from a state may hold otherwise than the template writes it, in sentences."""
    notes = []
    asked, question = _user("?"), _user("What then?")
    thought = _rendered(render, [[asked, _assistant(_THOUGHT + _MARK), question]])
    if thought and _HEAD not in thought[0]:
        notes.append(
            "the chat template leaves out what the model thought before earlier answers, and the state may hold it: "
            "`sala-export chat` keeps to the template"
        )
    turns = [*STAND_IN_TURN, question]
    both = _rendered(render, [turns, [{"role": "system", "content": _FILLER}, *turns]])
    if both and _after_answer(both[0]) != _after_answer(both[1]):
        notes.append(
            "the chat template writes the system message again in each turn, and a state does not tell its text: "
            "`sala-export chat` keeps to the template"
        )
    return notes


def _histories(texts: Sequence[str]) -> Iterator[list[Message]]:
    """Conversations that end with an answer, as different as they may be."""
    asked = _user("Tell me more about it.\n")
    yield [asked, _assistant(_THOUGHT + _MARK)]
    yield [asked, _assistant("No."), asked, _assistant(_MARK)]
    yield [asked, _assistant("No."), asked, _assistant("1, 2\n"), asked, _assistant(_MARK)]
    words = "\n".join([*texts, *_pairs(texts)])
    yield [_user(f"{words} {_FILLER}"), _assistant(f"{words}\n{_MARK}")]
    yield [_user(f"{_FILLER} {words}"), _assistant(f"A {words} {_MARK}")]
    repeated = "\n".join([*texts] * _REPEATED)
    yield [_user(repeated), _assistant(f"{repeated}\n{_MARK}")]
    yield [_user(_long_text()), _assistant(_long_text() + _MARK)]


def _long_text() -> str:
    return "word\n" * (_LONG // 5)


def _plain_probes() -> list[str]:
    return [
        _FILLER,
        f" \n {_FILLER} \n ",
        _FILLER.upper() + "?",
        "90217345518" * 4,
        f"{_FILLER}\n" * 3 + _FILLER,
        f'{{"a": [1]}} <b>{_FILLER}</b> /c_d *e* #f | g = h; (i) @j $k % l & m',
        f"\u4f60\u597d, \u00c4 {_FILLER} \U0001f642",
        _long_text() + _FILLER,
    ]


def _probes_with(texts: Sequence[str]) -> Iterator[str]:
    """Messages that begin with a text, end with it, hold it, and hold it between signs."""
    for text in texts:
        yield f"{text}\n{_FILLER}"
        yield f"{_FILLER}\n{text}"
        yield f"{_FILLER} {text} {_FILLER}."
    signs = [text for text in texts if len(text) == 1 and not text.isalnum()]
    for sign, text in itertools.islice(itertools.product(signs, texts), _MOST_TEXTS):
        yield f"{_FILLER}{sign}{text}{sign}."
    yield "\n".join([*texts, _FILLER, *texts])


def _repeating_probes(texts: Sequence[str], repeats: int) -> Iterator[str]:
    """Messages that hold a text many times, and what a template may make of two."""
    for text in texts:
        yield f"{text}\n" * repeats + _FILLER
    pairs = _pairs(texts)
    yield "\n".join([*pairs, _FILLER])
    if len(pairs) <= _MOST_PAIRED_ALONE**2:
        for pair in pairs:
            yield f"{pair}\n{_FILLER}"
            yield f"{_FILLER}\n{pair}"


def _repeats(texts: Sequence[str], constants: Constants) -> int:
    """How often to repeat each text: more often than the template may ask for, as far as that is not too much."""
    wanted = max(_REPEATED, int(constants.number) + 1 if constants.counts else 0)
    return min(wanted, _MOST_REPEATED // (sum(map(len, texts)) + len(texts) + 1))


def _pairs(texts: Sequence[str]) -> list[str]:
    """Each short text behind each. Empty if there are too many."""
    short = [text for text in texts if len(text) <= _SHORT]
    return [first + second for first in short for second in short] if len(short) <= _MOST_PAIRED else []


def _tried(texts: Iterable[str], origin: str) -> list[str]:
    tried = [text for text in dict.fromkeys(texts) if text and len(text) <= MOST_TEXT]
    if len(tried) > _MOST_TEXTS:
        raise SessionError(
            f"{origin}: the chat template compares with {len(tried)} texts, at most {_MOST_TEXTS} are tried"
        )
    return tried


def _rendered(render: Render, conversations: Sequence[Sequence[Message]]) -> list[str] | None:
    """None if the template refuses one of them."""
    try:
        return render(conversations)
    except SessionError:
        return None


def _after_answer(text: str) -> str | None:
    _, mark, after = text.partition(_MARK)
    return after if mark else None


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


STAND_IN_TURN = (_user("?"), _assistant(_MARK))
"""Stands in for the turns of a conversation that is not known."""
