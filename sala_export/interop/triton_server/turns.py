"""Answers to requests, drawn by the scheduler that `sala-export serve` uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import RequestError, SalaError
from ...serving.answers import AnswerRequest, Usage
from ...serving.chats import ChatTurn, Delta, PreparedChat, prepare
from ...serving.errors import ApiError
from ...serving.events import End, Progress
from ...serving.openai.messages import template_messages
from ...serving.parsing import Content, Reasoning, output_parser
from .conversations import ConversationState
from .requests import GenerateRequest

if TYPE_CHECKING:
    from ...serving.kept import Ids
    from ...serving.service import Service


@dataclass(kw_only=True, slots=True)
class Part:
    """What is new of an answer, or all of it."""

    text: str = ""
    reasoning: str = ""
    """What the model thinks, in a conversation of messages whose template knows thinking."""
    ids: list[int]
    reason: str | None = None
    """Why the answer ended: `stop` or `length`. None if it goes on."""


async def answered(
    service: Service, request: GenerateRequest, conversation: ConversationState, usage: Usage
) -> AsyncGenerator[Part]:
    """Go on with a conversation. Yields what comes, and keeps it in the conversation, also if the answer is cancelled.

    Args: usage: is kept up to date.
    Raises: ApiError or SalaError if the request cannot be answered, which leaves the conversation as it was.
    """
    prepared = await _prepared(service, request, conversation)
    prepared.request.with_tokens = True
    usage.prompt_tokens = len(prepared.request.ids)
    prepared.usage = usage
    said, ids, has_begun = Part(ids=[]), list[int](), False
    try:
        async with aclosing(prepared.events(service)) as events:
            async for event in events:
                has_begun = True
                if isinstance(event, Progress):
                    continue
                part = _part(event)
                said.text += part.text
                ids += part.ids
                yield part
    except (ApiError, SalaError):
        has_begun = False
        raise
    finally:
        if has_begun:
            conversation.ids = np.concatenate([prepared.request.ids, np.asarray(ids, np.int32)])
            if request.messages is not None:
                answer = {"role": "assistant", "content": said.text}
                conversation.messages += [*template_messages(request.messages), answer]


async def whole(parts: AsyncGenerator[Part]) -> Part:
    """An answer in one piece."""
    found = Part(ids=[])
    async with aclosing(parts):
        async for part in parts:
            found.text += part.text
            found.reasoning += part.reasoning
            found.ids += part.ids
            found.reason = part.reason
    return found


def _part(event: Delta | End) -> Part:
    if isinstance(event, End):
        return Part(ids=[], reason=event.reason)
    return Part(
        text="".join(each.text for each in event.parsed if isinstance(each, Content)),
        reasoning="".join(each.text for each in event.parsed if isinstance(each, Reasoning)),
        ids=[token.id for token in event.tokens],
    )


async def _prepared(service: Service, request: GenerateRequest, conversation: ConversationState) -> PreparedChat:
    goes_on = bool(len(conversation.ids))
    if goes_on and (request.messages is None) == bool(conversation.messages):
        kind = "messages" if conversation.messages else "texts"
        raise RequestError(f"the conversation is made of {kind}: go on with them, or begin another")
    if request.messages is not None:
        messages = [*conversation.messages, *template_messages(request.messages)]
        return await prepare(service, ChatTurn(messages=messages, sampling=request, max_new_tokens=request.max_tokens))
    ids = np.concatenate([conversation.ids, await _new_ids(service, request, begins=not goes_on)])
    most_new = service.answers.room_for(len(ids), request.max_tokens, service.settings.default_max_tokens)
    options = request.options(service.stop_tokens, choices=1, max_new_tokens=most_new, logprobs=None)
    service.model.check_generate(**options[0])
    return PreparedChat(
        AnswerRequest(
            ids=ids,
            options=options,
            stop_strings=request.stop_strings,
            priority=request.priority,
        ),
        Usage(prompt_tokens=len(ids)),
        lambda: output_parser("none"),
    )


async def _new_ids(service: Service, request: GenerateRequest, *, begins: bool) -> Ids:
    """Token ids of a prompt. A text begins as the tokenizer begins texts, if the conversation begins with it."""
    if request.input_ids is not None:
        return np.asarray(request.input_ids, np.int32)
    if not request.text_input:
        raise RequestError("the request has no prompt: give text_input, input_ids or messages")
    made = await asyncio.to_thread(service.prompts.of_text, request.text_input, add_special_tokens=begins)
    return made.ids
