"""The answer to a `ResponsesRequest`, in one piece or as events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from ..blocks import AnswerBlock, BlockBegun, BlockEvent, BlockGrown, Blocks
from ..chats import ChatEvent, PreparedChat
from ..errors import ApiError
from ..events import End, Progress
from ..service import Service
from ..stream import event
from .responses import ResponsesRequest

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


class ResponseAnswer:
    """A response while it comes."""

    def __init__(self, service: Service, request: ResponsesRequest, chat: PreparedChat) -> None:
        self._service = service
        self._chat = chat
        self._blocks = Blocks()
        self._ids: list[str] = []
        self._is_cut_off = False
        self._events_sent = 0
        self._head = {
            **request.repeated(),
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.settings.model_names[0],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
        }

    async def whole(self) -> dict[str, Any]:
        """The response as one object."""
        async with aclosing(self._chat.events(self._service)) as events:
            async for each in events:
                for _ in self._changes(each):
                    continue
        return await self._ended()

    async def events(self) -> AsyncGenerator[bytes]:
        """The response as server-sent events. The first comes when the request has been accepted."""
        async with aclosing(self._chat.events(self._service)) as events:
            async for each in events:
                if not self._events_sent:
                    yield self._event("response.created", response=self._response("in_progress"))
                    yield self._event("response.in_progress", response=self._response("in_progress"))
                for change in self._changes(each):
                    for data in self._block_events(change):
                        yield data
        ended = await self._ended()
        yield self._event(f"response.{ended['status']}", response=ended)

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that ends with an error."""
        self._is_cut_off = True
        codes = {429: "rate_limit_exceeded"}
        told = {"code": codes.get(error.status_code, "server_error"), "message": error.message}
        return self._event("response.failed", response=self._response("failed", error=told))

    def _changes(self, each: ChatEvent) -> Iterable[BlockEvent]:
        if isinstance(each, Progress):
            return ()
        if not isinstance(each, End):
            return self._blocks.add(each.parsed)
        self._is_cut_off = each.reason == "length"
        return self._blocks.finish()

    async def _ended(self) -> dict[str, Any]:
        status = "incomplete" if self._is_cut_off else "completed"
        reason = {"reason": "max_output_tokens"} if self._is_cut_off else None
        thoughts = [block.text for block in self._blocks.all if block.kind == "reasoning"]
        return self._response(
            status,
            completed_at=None if self._is_cut_off else int(time.time()),
            incomplete_details=reason,
            usage=self._usage(await asyncio.to_thread(self._tokens, thoughts)),
        )

    def _tokens(self, texts: list[str]) -> int:
        return sum(len(self._service.tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    def _usage(self, reasoning_tokens: int) -> dict[str, Any]:
        usage = self._chat.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": min(reasoning_tokens, usage.completion_tokens)},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _response(
        self,
        status: str,
        *,
        error: dict[str, Any] | None = None,
        completed_at: int | None = None,
        incomplete_details: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "error": error,
            "completed_at": completed_at,
            "incomplete_details": incomplete_details,
            "output": [self._item(block, self._status(block)) for block in self._blocks.all],
            "usage": usage,
        }

    def _status(self, block: AnswerBlock) -> str:
        """Of an item that has ended. The last one of an answer that was cut off is not complete."""
        return "incomplete" if self._is_cut_off and block is self._blocks.all[-1] else "completed"

    def _item(self, block: AnswerBlock, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._id(block), "status": status}
        parts = [_part(block)] if block.pieces else []
        if block.call is not None:
            call = block.call
            return {**item, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": block.text}
        if block.kind == "reasoning":
            return {**item, "type": "reasoning", "summary": [], "content": parts}
        return {**item, "type": "message", "role": "assistant", "content": parts}

    def _id(self, block: AnswerBlock) -> str:
        if block.index == len(self._ids):
            self._ids.append(f"{_PREFIXES[block.kind]}_{uuid.uuid4().hex}")
        return self._ids[block.index]

    def _block_events(self, change: BlockEvent) -> Iterator[bytes]:
        block = change.block
        place = {"item_id": self._id(block), "output_index": block.index}
        within = place if block.call is not None else {**place, "content_index": 0}
        if isinstance(change, BlockBegun):
            item = self._item(block, "in_progress")
            yield self._event("response.output_item.added", output_index=block.index, item=item)
            if block.call is None:
                yield self._event("response.content_part.added", **within, part=_part(block))
        elif isinstance(change, BlockGrown):
            name = _TEXT_EVENTS[block.kind]
            yield self._event(f"{name}.delta", **within, delta=change.text, **_LOGPROBS[block.kind])
        else:
            name, text = _TEXT_EVENTS[block.kind], "arguments" if block.call is not None else "text"
            yield self._event(f"{name}.done", **within, **{text: block.text}, **_LOGPROBS[block.kind])
            if block.call is None:
                yield self._event("response.content_part.done", **within, part=_part(block))
            item = self._item(block, self._status(block))
            yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _event(self, name: str, **fields: Any) -> bytes:
        number = self._events_sent
        self._events_sent += 1
        return event({"type": name, "sequence_number": number, **fields}, name=name)


_TEXT_EVENTS = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}
_LOGPROBS: dict[str, dict[str, Any]] = {"reasoning": {}, "text": {"logprobs": []}, "call": {}}


def _part(block: AnswerBlock) -> dict[str, Any]:
    """The only part of an item that has parts."""
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
