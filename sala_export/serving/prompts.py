"""Prompts as token ids: texts, and conversations as the chat template of the bundle writes them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..runtime.literal import LiteralMarks
from .contexts_prompts import DocumentEncoder, ReadDocument
from .errors import ApiError, invalid, unsupported

if TYPE_CHECKING:
    from ..runtime.chat import ChatTemplate
    from ..runtime.text import StreamEncoder, Tokenizer

_PIECE_CHARACTERS = 1 << 16
"""A text is encoded in pieces, so that other threads get their turns."""

_LAST_PIECES, _END_CHARACTERS = 4, 256
_GIVEN = frozenset({"messages", "tools", "add_generation_prompt"})

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a request asks the model to go on from."""

    ids: NDArray[np.int32]
    """int32 [tokens]"""
    end: str = ""
    """The end of a conversation's text: it tells whether the answer begins with what the model thinks."""


class Prompts:
    """Makes prompts of what clients send. Its methods take as long as the text is long: call them in a thread."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        """Args: template: of the bundle. None if it has none."""
        self._tokenizer = tokenizer
        self._template = template

    @property
    def template_source(self) -> str | None:
        """The chat template itself. None if there is none."""
        return None if self._template is None else self._template.source

    def reads(self, variable: str) -> bool:
        """True if the chat template reads a variable of this name."""
        return self._template is not None and variable in self._template.variables()

    def of_text(self, text: str, *, add_special_tokens: bool = True) -> Prompt:
        """Encode a text. Special tokens that it spells are special tokens."""
        encoder = self._tokenizer.stream_encoder(add_special_tokens=add_special_tokens)
        return Prompt(ids=_encoded(encoder, [(text, False)]))

    def of_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        document: ReadDocument | None = None,
        goes_on: bool = False,
    ) -> Prompt:
        """Encode a conversation. Special tokens that its texts spell are ordinary text.

        Args:
            variables: further variables of the chat template.
            document: that the conversation goes on from.
            goes_on: end where the text of the last message, an assistant's, ends, so that the model goes on with it.
        Raises: ApiError if there is no template, if it takes no tools or variables that the request has, or if it does
            not let the last message go on; SessionError if it refuses the messages.
        """
        template = self._require_template(tools, variables or {})
        marks = LiteralMarks(self._tokenizer)
        given = {"tools": _marked(tools, marks), **(variables or {})}
        mark = ""
        if document is not None:
            messages, mark = document.place(messages)
        marked = _marked(messages, marks)
        if goes_on:
            text = _up_to_last(template, marked, given)
        else:
            text = template.render(marked, add_generation_prompt=add_generation_prompt, **given)
        if document is not None:
            text = document.behind(text, mark, marks)
        encoder = self._tokenizer.stream_encoder(add_special_tokens=False)
        pieces = [*marks.pieces(text)]
        end = "".join(piece for piece, _ in pieces[-_LAST_PIECES:])[-_END_CHARACTERS:]
        ids = _encoded(encoder, pieces)
        return Prompt(ids=ids if document is None else np.concatenate([document.ids, ids]), end=end)

    def document(self, system: str | None) -> DocumentEncoder:
        """What encodes a document that conversations will go on from. Args: system: the message in front of it.

        Raises: ApiError if there is no template; otherwise as `DocumentEncoder`.
        """
        return DocumentEncoder(self._tokenizer, self._require_template(None, {}), system)

    def _require_template(
        self, tools: Sequence[Mapping[str, Any]] | None, variables: Mapping[str, Any]
    ) -> ChatTemplate:
        if self._template is None:
            raise ApiError(
                400,
                "the model came without a chat template: use /v1/completions, or build the bundle from a checkpoint "
                "that has one",
                code="no_chat_template",
            )
        chosen = self._template.choose({"tools": tools})
        known = chosen.variables()
        if tools is not None and "tools" not in known:
            raise unsupported("tools", "the chat template of this model takes none")
        for name in variables:
            if name in _GIVEN or name not in known:
                raise invalid("chat_template_kwargs", f"the chat template of this model has no variable {name!r}")
        return chosen


def _up_to_last(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    """What a template writes up to the end of the last message's text."""
    *earlier, last = messages
    if last.get("tool_calls") or not last["content"]:
        raise invalid(
            "messages", "the last message is the assistant's, and no text that goes on: end with a user's or a result"
        )
    end = secrets.token_hex(16)
    marked = {**last, "content": last["content"] + end}
    parts = template.render([*earlier, marked], add_generation_prompt=False, **given).split(end)
    if len(parts) != 2:
        raise invalid(
            "messages",
            "the last message is the assistant's, and the chat template of this model does not write it as it stands, "
            "so that no answer can go on from it: end with a user's message",
        )
    return parts[0]


def _encoded(encoder: StreamEncoder, pieces: Iterable[tuple[str, bool]]) -> NDArray[np.int32]:
    """Ids of a text in pieces, of which some are literal, int32 [tokens]."""
    parts = []
    for piece, literal in pieces:
        for start in range(0, len(piece), _PIECE_CHARACTERS):
            parts.append(np.asarray(encoder.push(piece[start : start + _PIECE_CHARACTERS], literal=literal), np.int32))
    return np.concatenate([*parts, np.asarray(encoder.finish(), np.int32)])


def _marked(value: Value, marks: LiteralMarks) -> Value:
    """The value with marks around the special tokens that its texts spell, but for roles."""
    marked: Any = value
    if isinstance(value, str):
        marked = marks.around_special(value)
    elif isinstance(value, Mapping):
        marked = {name: each if name == "role" else _marked(each, marks) for name, each in value.items()}
    elif isinstance(value, Sequence):
        marked = [_marked(each, marks) for each in value]
    return cast("Value", marked)
