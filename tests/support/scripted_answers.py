"""A server whose model says what a test wrote down, and that keeps the prompts that it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from sala_export.errors import SalaError
from sala_export.runtime.chat import ChatTemplate
from sala_export.serving.answers import AnswerRequest, End, Event, Piece, Progress, Usage
from sala_export.serving.prompts import Prompts
from sala_export.serving.service import Service

TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.tool_call_id %}{{- message.tool_call_id + ': ' }}{%- endif %}
    {%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined %}{{- '<think>\\n' if enable_thinking else '<think></think>' }}{%- endif %}
{%- endif %}
"""
"""In the way of Qwen's, whose tools and thinking the parsers of `hermes` read."""

_CACHED_TOKENS = 2


@dataclass(kw_only=True, slots=True)
class Script:
    """What the model says next."""

    pieces: list[str]
    """Each is a token."""
    reason: str = "stop"
    stop_string: str | None = None
    error: SalaError | None = None
    """Comes up behind the pieces."""
    requests: list[AnswerRequest] = field(default_factory=list)
    """What was asked so far."""

    def prompt(self, service: Service) -> str:
        """The text of the last request's prompt."""
        decoder = service.tokenizer.stream_decoder(skip_special_tokens=False)
        return "".join(map(decoder.push, self.requests[-1].ids.tolist())) + decoder.finish()


@contextmanager
def scripted(service: Service, script: Script) -> Iterator[None]:
    """Let a service say what a script has, in the form `hermes`, until the block is left."""

    @asynccontextmanager
    async def answering(request: AnswerRequest, usage: Usage) -> AsyncIterator[AsyncIterator[Event]]:
        script.requests.append(request)
        usage.cached_tokens = _CACHED_TOKENS
        yield _said(script, len(request.ids), usage)

    answers, prompts, output_format = service.answers, service.prompts, service.output_format
    template = ChatTemplate(TEMPLATE, {}, "the test's template")
    service.prompts, service.output_format = Prompts(service.tokenizer, template), "hermes"
    answers.answering = answering  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        service.prompts, service.output_format = prompts, output_format
        del answers.answering


async def _said(script: Script, prompt_tokens: int, usage: Usage) -> AsyncIterator[Event]:
    for processed in (_CACHED_TOKENS, prompt_tokens):
        yield Progress(total=prompt_tokens, cached=_CACHED_TOKENS, processed=processed, seconds=0.0)
    for piece in script.pieces:
        usage.completion_tokens += 1
        yield Piece(choice=0, text=piece, tokens=[])
    if script.error is not None:
        raise script.error
    yield End(choice=0, reason=script.reason, stop_string=script.stop_string)
