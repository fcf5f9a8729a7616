"""Chat templates: the Jinja programs with which a checkpoint writes a conversation down as text.

They come with a checkpoint, so they run in a sandbox (`chat_sandbox`). They see what Hugging Face's convention
promises: `messages`, `add_generation_prompt`, `tools`, `documents`, the special tokens by name (`bos_token`, ...), the
functions `raise_exception` and `strftime_now`, and `tojson` without HTML escapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

import jinja2

from ..errors import BundleError, RequestError, SessionError, UnsupportedError
from .chat_budget import budget_for
from .chat_constants import Constants, constants_of
from .chat_probes import (
    STAND_IN_TURN,
    Around,
    Message,
    Render,
    around_prompt,
    following_turn,
    notes_on_states,
)
from .chat_sandbox import ChatSandbox

if TYPE_CHECKING:
    from .text_fields import TemplateText

DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message may hold what a model thought. Templates read the first two."""
_MOST_REASON = 300


class ChatTemplate:
    """A chat template. It compiles at its first use, so that a bad one keeps nobody from plain text.

    A checkpoint may have several templates with names. Then this is the one named `default`, and `named` gives the
    others.
    """

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        origin: str,
        *,
        named: Mapping[str, ChatTemplate] | None = None,
    ) -> None:
        """Args: source: None if all templates have names and none is `default`; origin: names the file in errors."""
        self.origin = origin
        """The file that the template is from, for messages."""
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._named = dict(named or {})
        self._compiled: jinja2.Template | None = None
        self._variables: frozenset[str] | None = None

    @property
    def source(self) -> str | None:
        """The template itself. None if all have names and none is `default`."""
        return self._source

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the checkpoint's templates. Empty if its only one has none."""
        return tuple(self._named)

    def named(self, name: str) -> ChatTemplate:
        """The template of this name. Raises: RequestError that tells the names there are."""
        if name not in self._named:
            known = f"its names are {', '.join(self._named)}" if self._named else "its only one has no name"
            raise RequestError(f"{self.origin}: there is no chat template {name!r}: {known}")
        return self._named[name]

    def choose(self, variables: Mapping[str, object]) -> ChatTemplate:
        """The template that is for these variables: the one named `tool_use` where there are `tools`, else this."""
        return self if variables.get("tools") is None else self._named.get(TOOL_TEMPLATE, self)

    def compile(self) -> None:
        """Compile the template now. Raises: BundleError if it does not compile; UnsupportedError as `render`."""
        self._template()

    def variables(self) -> frozenset[str]:
        """The names that the template reads from outside. Raises: as `compile`."""
        self._template()
        if self._variables is None:
            self._variables = ChatSandbox().variables(self._source or "")
        return self._variables

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: object) -> str:
        """Write a conversation as text with its special tokens. Encode it with `add_special_tokens=False`.

        It is `choose(variables)` that writes it.
        Raises: SessionError if the template refuses the messages, fails, or would take too much time or memory;
            BundleError if it does not compile; UnsupportedError if there are several and none is `default`.
        """
        values = {"add_generation_prompt": add_generation_prompt, **variables}
        return self.choose(variables)._render_all([messages], values)[0]

    def turn(self, prompt: str, *, goes_on: bool, system: str | None = None, **variables: object) -> str:
        """Write a user's message up to where the model's answer begins.

        Args:
            goes_on: the context holds a conversation up to the text of an answer, and its texts are not known. The
                result begins with what ends that answer.
            system: the message that begins a new conversation.
            variables: further variables of the template, such as `enable_thinking`.
        Raises: SessionError as `render`; with `goes_on`, also if the template leaves answers out, or writes a turn by
            the texts of those before it.
        """
        if not goes_on:
            return self._renderer(variables)([_begun(prompt, system)])[0]
        return following_turn(self._renderer(variables), prompt, self._constants(variables).texts, self.origin)

    def around_prompt(
        self, *, goes_on: bool, beginning: str = "", system: str | None = None, **variables: object
    ) -> Around:
        """The text of `turn` before and after a prompt that is too long to be held.

        The template is tried with many texts, such as those that it compares with. Args: beginning: of the prompt.
        Raises: SessionError as `turn`, and if the template looks at the prompt.
        """
        render, constants = self._renderer(variables), self._constants({**variables, "system": system})
        if goes_on:
            following_turn(render, "?", constants.texts, self.origin)
        earlier = STAND_IN_TURN if goes_on else _begun("", system)[:-1]
        return around_prompt(render, earlier, constants, self.origin, beginning=beginning)

    def notes_on_states(self, **variables: object) -> list[str]:
        """What a context that goes on from a state may hold otherwise than the template writes it, in sentences."""
        return notes_on_states(self._renderer(variables))

    def _renderer(self, variables: Mapping[str, object]) -> Render:
        def render(conversations: Sequence[Sequence[Message]]) -> list[str]:
            return self._render_all(conversations, {"add_generation_prompt": True, **variables})

        return render

    def _constants(self, variables: Mapping[str, object]) -> Constants:
        """What the template may compare messages with."""
        self._template()
        tree = ChatSandbox().parse(self._source or "")
        return constants_of(tree, [*variables.values(), *self._special_tokens.values()])

    def _render_all(self, conversations: Sequence[Sequence[Message]], variables: Mapping[str, object]) -> list[str]:
        template = self._template()
        values = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            with budget_for((conversations, variables)):
                return [template.render(**{**values, "messages": _normal(each)}) for each in conversations]
        # The template is a program of a stranger, and whatever it raises is its fault.
        except Exception as error:
            raise SessionError(f"{self.origin}: the chat template refuses the messages: {_reason(error)}") from None

    def _template(self) -> jinja2.Template:
        if self._source is None:
            raise UnsupportedError(
                f"{self.origin}: none of the chat templates is named {DEFAULT_TEMPLATE!r}: choose one of "
                f"{', '.join(self._named)} with --chat-template, or with named() in Python"
            )
        if self._compiled is None:
            environment = ChatSandbox()
            environment.add_filter("tojson", _to_json)
            environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
            try:
                with budget_for(self._source):
                    self._compiled = environment.compiled(self._source)
            # Whatever Jinja or Python's compiler finds wrong with the code of a stranger: also RecursionError.
            except Exception as error:
                raise BundleError(f"{self.origin}: the chat template does not compile: {_reason(error)}") from None
        return self._compiled


def chat_of(texts: Mapping[str, TemplateText], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template that these make: the one named `default`, or the only one. None if there are none."""
    if not texts:
        return None
    named = {name: ChatTemplate(text.source, special_tokens, text.origin) for name, text in texts.items()}
    first = texts[DEFAULT_TEMPLATE] if DEFAULT_TEMPLATE in texts else next(iter(texts.values()))
    chosen = first.source if len(texts) == 1 or DEFAULT_TEMPLATE in texts else None
    return ChatTemplate(chosen, special_tokens, first.origin, named=named)


def _begun(prompt: str, system: str | None) -> list[Message]:
    asked = {"role": "user", "content": prompt}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


def _normal(messages: Sequence[Message]) -> list[object]:
    """Messages as templates expect them: without fields that are None, and with reasoning under the names they read."""
    normal: list[object] = []
    for message in messages:
        if not isinstance(message, Mapping):
            normal.append(message)
            continue
        fields = {name: value for name, value in message.items() if value is not None}
        reasoning = next((fields[name] for name in _REASONING if name in fields), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        normal.append(fields)
    return normal


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
