"""Options of conversations, and the chat template that they choose."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import click

from ..errors import RequestError, UnsupportedError
from .options import Command

if TYPE_CHECKING:
    from ..runtime.chat import ChatTemplate
    from ..runtime.chat_probes import Around
    from ..runtime.literal import LiteralMarks
    from ..runtime.text import Tokenizer
    from .generate_prompt import PromptSource

MOST_HELD_BYTES = 4 << 20
"""A longer prompt from a file or a stream is not held: the template then writes around it."""

_GIVEN_ANYHOW = {"messages": "give the prompt and --system", "add_generation_prompt": "an answer always follows"}
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}

logger = logging.getLogger(__name__)


class ChatOptions(TypedDict):
    """What `chat_options` gives to a command."""

    system: str | None
    template_var: tuple[tuple[str, object], ...]
    chat_template: str | None


class _Variable(click.ParamType[tuple[str, object]]):
    """A variable of a chat template, such as enable_thinking=false."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, object]:
        name, sign, text = value.partition("=")
        if not sign or not name.isidentifier():
            self.fail(f"{value!r} is not NAME=VALUE, such as enable_thinking=false.", param, ctx)
        if name in _GIVEN_ANYHOW:
            self.fail(f"{name} is not for you to give: {_GIVEN_ANYHOW[name]}.", param, ctx)
        if text in _PYTHON_WORDS:
            self.fail(f'{value}: write {name}={_PYTHON_WORDS[text]}, or {name}="{text}" for the text.', param, ctx)
        return name, _value(text)


def chat_options(command: Command) -> Command:
    """Add `--system`, `--template-var` and `--chat-template`."""
    for option in (
        click.option("--chat-template", metavar="NAME", help="The chat template of this name, if there are several."),
        click.option(
            "--template-var",
            type=_Variable(),
            multiple=True,
            help="A variable of the chat template, e.g. enable_thinking=false. The value is JSON, or else text. You "
            "can repeat the option.",
        ),
        click.option("--system", metavar="TEXT", help="The system message, which begins the conversation."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template with what the options give it."""

    template: ChatTemplate
    system: str | None
    variables: Mapping[str, Any]

    @classmethod
    def choose(cls, tokenizer: Tokenizer, options: ChatOptions) -> Chat:
        """The template that the options mean, compiled. Variables that it does not read are warned of.

        Raises: UnsupportedError if the checkpoint has no template, or several and none is chosen; RequestError for an
            option that does not fit; BundleError if it does not compile.
        """
        if tokenizer.chat is None:
            raise UnsupportedError("the checkpoint came without a chat template: use `generate` without --chat")
        name, system, variables = options["chat_template"], options["system"], dict(options["template_var"])
        template = tokenizer.chat.choose(variables) if name is None else tokenizer.chat.named(name)
        known = template.variables()
        for unknown in sorted(variables.keys() - known):
            logger.warning("--template-var %s: the chat template reads no variable of this name", unknown)
        if system is not None:
            try:
                system.encode()
            except UnicodeEncodeError:
                raise RequestError("--system is not UTF-8 text: convert it first") from None
        return cls(template, system, variables)

    def turn(self, prompt: str, *, goes_on: bool) -> str:
        """As `ChatTemplate.turn`."""
        return self.template.turn(prompt, goes_on=goes_on, system=self.system, **self.variables)

    def try_out(self, source: PromptSource, *, goes_on: bool) -> None:
        """Render a prompt that is known already, so that what the template has against it shows at once.

        Raises: as `ChatTemplate.turn`.
        """
        if source.file is None:
            self.turn(source.text.decode("utf-8", "replace"), goes_on=goes_on)
        elif source.bytes_total is not None and source.bytes_total > MOST_HELD_BYTES:
            self._around("", goes_on=goes_on)
        if goes_on:
            for note in self.template.notes_on_states(**self.variables):
                logger.warning("%s", note)

    def texts(
        self, source: PromptSource, *, goes_on: bool, marks: LiteralMarks | None = None
    ) -> Iterator[tuple[str, bool]]:
        """Yield the text of a turn, whole if the prompt can be held, else around the prompt as it arrives.

        Args: marks: the prompt is literal. Each piece comes with whether it is.
        Raises: as `PromptSource.text_blocks`, `ChatTemplate.turn` and `ChatTemplate.around_prompt`.
        """
        blocks, held = source.text_blocks(), []
        for block in blocks:
            held.append(block)
            if source.file is not None and source.bytes_read > MOST_HELD_BYTES:
                break
        else:
            prompt = "".join(held)
            if marks is None:
                for piece in source.cut_behind_file(self.turn(prompt, goes_on=goes_on), prompt):
                    yield piece, False
            else:
                yield from marks.pieces(self.turn(marks.around_special(prompt), goes_on=goes_on))
            return
        before, after, trims = self._around("".join(held), goes_on=goes_on)
        yield before, False
        text = itertools.chain(held, blocks)
        for block in _trimmed(text) if trims else text:
            yield block, marks is not None
        yield after, False

    def _around(self, beginning: str, *, goes_on: bool) -> Around:
        return self.template.around_prompt(goes_on=goes_on, beginning=beginning, system=self.system, **self.variables)


def require_sense(options: ChatOptions, *, chat: bool, goes_on: bool) -> None:
    """Raises: RequestError if an option is given that this command would not read."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, ())]
    if given and not chat:
        raise RequestError(f"{given[0]} is for the chat template: give --chat, too")
    if goes_on and options["system"] is not None:
        raise RequestError("--system begins a conversation, and the saved one has begun: leave it out")


def _value(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text


def _no_json(constant: str) -> object:
    raise ValueError(constant)


def _trimmed(blocks: Iterable[str]) -> Iterator[str]:
    """A text in blocks without the white space at its ends."""
    has_begun, waiting = False, [""]
    for block in blocks:
        body = block.rstrip()
        if body:
            yield "".join(waiting) + (body if has_begun else body.lstrip())
            has_begun, waiting = True, []
        if has_begun:
            waiting.append(block[len(body) :])
