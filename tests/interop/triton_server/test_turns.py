"""What a conversation remembers of a turn, on events that a test makes up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sala_export.interop.triton_server import turns
from sala_export.interop.triton_server.conversations import ConversationState
from sala_export.serving.answers import Usage
from sala_export.serving.errors import ApiError
from sala_export.serving.events import Progress


@pytest.mark.parametrize(
    ("error", "tokens"), [(ApiError(503, "busy: try again later"), [1, 2]), (asyncio.CancelledError(), [1, 2, 3])]
)
def test_turn_that_fails_leaves_no_trace_and_a_cancelled_one_does(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, tokens: list[int]
) -> None:
    async def events(service: Any) -> AsyncGenerator[Any]:
        yield Progress(total=3, cached=0, processed=0, seconds=0.0)
        raise error

    async def prepared(*about: Any) -> Any:
        return SimpleNamespace(request=SimpleNamespace(ids=np.array([1, 2, 3], np.int32)), events=events)

    async def turn() -> None:
        request: Any = SimpleNamespace(messages=None)
        async for _ in turns.answered(SimpleNamespace(), request, conversation, Usage(prompt_tokens=0)):
            pass

    monkeypatch.setattr(turns, "_prepared", prepared)
    conversation = ConversationState(ids=np.array([1, 2], np.int32))
    with pytest.raises(type(error)):
        asyncio.run(turn())
    assert conversation.ids.tolist() == tokens
