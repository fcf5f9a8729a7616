"""Answers of a conversation: the same for every protocol that has conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from .answers import AnswerRequest, Usage
from .errors import invalid, unsupported
from .events import End, Piece, Progress, Token
from .parsing import Event as Parsed
from .parsing import OutputParser, ToolCallBegun, output_parser, reasoning_begins, reasoning_has_ended

if TYPE_CHECKING:
    from ..runtime.token_constraint import TokenConstraint
    from .contexts_prompts import ReadDocument
    from .openai.parameters import SamplingParameters
    from .service import Service

ANY_TOOL = "*"


@dataclass(kw_only=True, slots=True)
class ChatTurn:
    """What the next message of a conversation should be."""

    messages: Sequence[Mapping[str, Any]]
    """As chat templates take them."""
    document: ReadDocument | None = None
    """What the conversation goes on from: the first user's message stands behind it."""
    goes_on: bool = False
    """The last message is the assistant's, and the answer goes on from its end."""
    tools: Sequence[Mapping[str, Any]] = ()
    forced_tool: str | None = None
    """The name of a tool that must be called, or `ANY_TOOL`. None: the model decides."""
    parallel_tool_calls: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the chat template."""
    json_schema: Mapping[str, Any] | None = None
    """The answer is JSON that fits this schema. An empty one fits any object."""
    sampling: SamplingParameters
    max_new_tokens: int | None
    max_tokens_param: str = "max_tokens"
    """The name by which the client knows `max_new_tokens`."""
    choices: int = 1
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What is new of one choice."""

    choice: int
    parsed: list[Parsed]
    tokens: list[Token]
    """Those that were drawn, if the request is `with_tokens`."""


ChatEvent = Progress | Delta | End


@dataclass(slots=True)
class PreparedChat:
    """A turn that can be answered: all that could be wrong with it has been looked at."""

    request: AnswerRequest
    usage: Usage
    make_parser: Callable[[], OutputParser]
    parallel_tool_calls: bool = True

    async def events(self, service: Service) -> AsyncGenerator[ChatEvent]:
        """Answer, and yield what comes. Closing it ends the answer."""
        choices = [_Choice(self.make_parser(), self.parallel_tool_calls) for _ in self.request.options]
        async with service.answers.answering(self.request, self.usage) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield event
                    continue
                for each in choices[event.choice].take(event):
                    yield each
                if all(choice.has_ended for choice in choices):
                    return


class _Choice:
    """One choice while it comes."""

    def __init__(self, parser: OutputParser, parallel_tool_calls: bool) -> None:
        self._parser = parser
        self._parallel = parallel_tool_calls
        self._has_called = False
        self.has_ended = False

    def take(self, event: Piece | End) -> Iterator[Delta | End]:
        """Yield what is new. Nothing more comes once it has ended."""
        if self.has_ended:
            return
        parsed = self._parser.push(event.text) if isinstance(event, Piece) else self._parser.finish()
        kept = parsed if self._parallel else [*takewhile(_is_no_second_call, parsed)]
        self._has_called = self._has_called or any(isinstance(each, ToolCallBegun) for each in kept)
        tokens = event.tokens if isinstance(event, Piece) else []
        if kept or tokens:
            yield Delta(choice=event.choice, parsed=kept, tokens=tokens)
        self.has_ended = isinstance(event, End) or len(kept) < len(parsed)
        if isinstance(event, End) and event.reason == "length":
            yield event
        elif self.has_ended:
            stop_string = event.stop_string if isinstance(event, End) else None
            reason = "tool_calls" if self._has_called else "stop"
            yield End(choice=event.choice, reason=reason, stop_string=stop_string)


def _is_no_second_call(event: Parsed) -> bool:
    return not (isinstance(event, ToolCallBegun) and event.index > 0)


async def prepare(service: Service, turn: ChatTurn) -> PreparedChat:
    """Look at a turn, and make its prompt.

    Raises: ApiError or SalaError for what is wrong with it.
    """
    tools = [*turn.tools] or None
    prompt = await asyncio.to_thread(
        service.prompts.of_messages,
        turn.messages,
        tools=tools,
        variables=dict(turn.variables),
        document=turn.document,
        goes_on=turn.goes_on,
    )
    most_new = service.answers.room_for(
        len(prompt.ids), turn.max_new_tokens, service.settings.default_max_tokens, param=turn.max_tokens_param
    )
    form = service.output_format
    begins = reasoning_begins(form, prompt.end)
    options = turn.sampling.options(
        service.stop_tokens, choices=turn.choices, max_new_tokens=most_new, logprobs=turn.logprobs
    )
    for chosen in options:
        if (constraint := await _constraint(service, turn, prompt.end)) is not None:
            chosen["constraint"] = constraint
    service.model.check_generate(**options[0])
    request = AnswerRequest(
        ids=prompt.ids,
        options=options,
        stop_strings=turn.sampling.stop_strings,
        spells_special_tokens=form != "none",
        priority=turn.sampling.priority,
        with_tokens=turn.logprobs is not None,
    )
    return PreparedChat(
        request,
        Usage(prompt_tokens=len(prompt.ids)),
        lambda: output_parser(form, tools=tools or (), starts_in_reasoning=begins),
        parallel_tool_calls=turn.parallel_tool_calls,
    )


async def _constraint(service: Service, turn: ChatTurn, prompt_end: str) -> TokenConstraint | None:
    """What keeps an answer to its form. None if it may have any. Made anew for each answer, and in a thread."""
    form = service.output_format
    starts_in_reasoning = reasoning_begins(form, prompt_end)
    should_not = turn.variables.get("enable_thinking") is False or reasoning_has_ended(form, prompt_end)
    reasons = starts_in_reasoning or not should_not
    if turn.forced_tool is not None:
        if form == "none":
            raise unsupported("tool_choice", "the server knows no form in which this model calls tools")
        choice = None if turn.forced_tool == ANY_TOOL else turn.forced_tool
        names = [tool["function"]["name"] for tool in turn.tools]
        if not names or choice not in (None, *names):
            wanted = "a tool" if choice is None else repr(choice)
            raise invalid("tool_choice", f"tool_choice asks for {wanted}, and tools has {', '.join(names) or 'none'}")
        return await asyncio.to_thread(
            lambda: service.grammars.tool_calls(
                form,
                turn.tools,
                choice=choice,
                parallel=turn.parallel_tool_calls,
                reasoning=reasons,
                starts_in_reasoning=starts_in_reasoning,
            )
        )
    if turn.json_schema is None:
        return None
    schema = turn.json_schema or {"type": "object"}
    after = form if reasons else "none"
    return await asyncio.to_thread(
        lambda: service.grammars.json_schema(schema, after_reasoning=after, starts_in_reasoning=starts_in_reasoning)
    )
