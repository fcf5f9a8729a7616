"""Chat templates: the Jinja programs with which a checkpoint writes a conversation down as text.

They come with a checkpoint, so they run in a sandbox (`chat_sandbox`). They see what Hugging Face's convention
promises: `messages`, `add_generation_prompt`, `tools`, `documents`, the special tokens by name (`bos_token`, ...), the
functions `raise_exception` and `strftime_now`, and `tojson` without HTML escapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2

from ..errors import BundleError, SessionError
from .chat_budget import budget_for
from .chat_sandbox import ChatSandbox

Message = Mapping[str, Any]
"""One message of a conversation: `role`, `content`, and further keys that the template knows."""

# White space shows whether a template trims what it is given.
_PROMPT_PROBE = " \n prompt-of-unknown-length \n "
_ANSWER_PROBE = "answer-in-the-context"
_MOST_REASON = 300


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: str) -> None:
        """Args: origin: names the file in errors. Raises: BundleError if the template does not compile."""
        environment = ChatSandbox()
        environment.add_filter("tojson", _to_json)
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        try:
            with budget_for(source):
                self._template = environment.compiled(source)
        # Whatever Jinja or Python's compiler finds wrong with the code of a stranger: also RecursionError, MemoryError.
        except Exception as error:
            raise BundleError(f"{origin}: the chat template does not compile: {_reason(error)}") from None
        self._special_tokens = dict(special_tokens)
        self._origin = origin

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: object) -> str:
        """Write a conversation as text with its special tokens. Encode it with `add_special_tokens=False`.

        Raises: SessionError if the template refuses the messages, fails, or would take too much time or memory.
        """
        values = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            with budget_for((messages, variables)):
                return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
        # The template is a program of a stranger, and whatever it raises is its fault.
        except Exception as error:
            raise SessionError(f"{self._origin}: the chat template refuses the messages: {_reason(error)}") from None

    def turn(self, prompt: str, *, goes_on: bool) -> str:
        """Write a user's message up to where the model's answer begins.

        Args: goes_on: the context holds a conversation up to the text of an answer; the result begins with what ends
        that answer.
        Raises: SessionError as `render`, or if a template leaves answers out.
        """
        if not goes_on:
            return self.render([{"role": "user", "content": prompt}])
        conversation = self.render(
            [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": _ANSWER_PROBE},
                {"role": "user", "content": prompt},
            ]
        )
        _, answer, following = conversation.partition(_ANSWER_PROBE)
        if not answer:
            raise SessionError(
                f"{self._origin}: the chat template leaves out what the model answered, so no conversation can go on: "
                "begin a new one"
            )
        return following

    def around_prompt(self, *, goes_on: bool) -> tuple[str, str] | None:
        """The text of `turn` before and after a prompt that is not known yet. None if the template changes prompts."""
        parts = self.turn(_PROMPT_PROBE, goes_on=goes_on).split(_PROMPT_PROBE)
        return (parts[0], parts[1]) if len(parts) == 2 else None


def _reason(error: Exception) -> str:
    text = str(error)[:_MOST_REASON]
    # Jinja's own errors are sentences; of Python's, some have no text at all.
    return text if isinstance(error, jinja2.TemplateError) and text else f"{type(error).__name__}: {text}"


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 -- the convention's name
    return datetime.now().strftime(format)
