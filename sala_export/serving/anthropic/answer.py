"""The answer to a `MessagesRequest`, in one piece or as events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from ..blocks import AnswerBlock, BlockBegun, BlockEvent, BlockGrown, Blocks
from ..chats import PreparedChat
from ..errors import ApiError
from ..events import End, Progress
from ..service import Service
from ..stream import event
from .errors import PATH, error_body

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageAnswer:
    """A message of the assistant while it comes."""

    def __init__(self, service: Service, chat: PreparedChat) -> None:
        self._service = service
        self._chat = chat
        self._blocks = Blocks()
        self._ending: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": service.settings.model_names[0],
        }

    async def whole(self) -> dict[str, Any]:
        """The message as one object."""
        async with aclosing(self._chat.events(self._service)) as events:
            async for each in events:
                if isinstance(each, End):
                    self._end(each)
                elif not isinstance(each, Progress):
                    for _ in self._blocks.add(each.parsed):
                        continue
        return self._message([_described(block) for block in self._blocks.all])

    async def events(self) -> AsyncGenerator[bytes]:
        """The message as server-sent events. The first comes when the request has been accepted."""
        has_begun = False
        async with aclosing(self._chat.events(self._service)) as events:
            async for each in events:
                if not has_begun:
                    has_begun = True
                    yield _event("message_start", message=self._message([]))
                if isinstance(each, Progress):
                    yield _event("ping")
                    continue
                if isinstance(each, End):
                    self._end(each)
                    changes: Iterable[BlockEvent] = self._blocks.finish()
                else:
                    changes = self._blocks.add(each.parsed)
                for change in changes:
                    for data in _block_events(change):
                        yield data
        yield _event("message_delta", delta=self._ending, usage=self._usage())
        yield _event("message_stop")

    @staticmethod
    def failed(error: ApiError) -> bytes:
        """The last event of a stream that ends with an error."""
        return event(error_body(error, PATH), name="error")

    def _end(self, end: End) -> None:
        reason = _REASONS[end.reason] if end.stop_string is None else "stop_sequence"
        self._ending = {"stop_reason": reason, "stop_sequence": end.stop_string}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "content": content, **self._ending, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        usage = self._chat.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }


def _described(block: AnswerBlock) -> dict[str, Any]:
    if block.call is not None:
        arguments = json.loads(block.text or "{}")
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": arguments}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _block_events(change: BlockEvent) -> Iterator[bytes]:
    index = change.block.index
    kind = change.block.kind
    if isinstance(change, BlockBegun):
        yield _event("content_block_start", index=index, content_block=_described(change.block))
    elif isinstance(change, BlockGrown):
        yield _event("content_block_delta", index=index, delta=_delta(change))
    else:
        if kind == "reasoning":
            # Clients wait for it to know that the thinking is whole, and send it back with the thinking.
            signature = {"type": "signature_delta", "signature": ""}
            yield _event("content_block_delta", index=index, delta=signature)
        yield _event("content_block_stop", index=index)


def _delta(change: BlockGrown) -> dict[str, Any]:
    match change.block.kind:
        case "call":
            return {"type": "input_json_delta", "partial_json": change.text}
        case "reasoning":
            return {"type": "thinking_delta", "thinking": change.text}
        case "text":
            return {"type": "text_delta", "text": change.text}


def _event(name: str, **fields: Any) -> bytes:
    return event({"type": name, **fields}, name=name)
