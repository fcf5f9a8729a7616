"""A loaded model that answers requests of Triton Inference Server, in an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ...errors import SalaError, UnsupportedError
from ...loading import load
from ...runtime.model import Model
from ...runtime.state_store import StateStore
from ...serving.answers import Usage
from ...serving.errors import ApiError, of_sala
from ...serving.service import Service, with_cache_limit
from ...serving.settings import Settings
from .call import CANCELLED, Call
from .conversations import Conversations, ConversationState
from .metrics import ShownMetrics
from .options import ModelParameters
from .turns import Part, answered, whole

_LOOK_SECONDS = 0.2
"""How often it looks for requests that were cancelled, for idle conversations, and at its metrics."""


class Instance:
    """One of the copies of a model. Its methods are for the server's thread."""

    def __init__(
        self, parameters: ModelParameters, *, folder: Path, model_name: str, name: str, keeps_conversations: bool
    ) -> None:
        """Load the bundle, and begin to wait for requests.

        Args: folder: of the model's version; keeps_conversations: all turns of one come to this instance.
        Raises: as `sala_export.load`, `StateStore` and `Service.open`.
        """
        self._max_idle, self._keeps_conversations = parameters.max_idle, keeps_conversations
        self._metrics = ShownMetrics({"model": model_name, "instance": name})
        self._calls: dict[Call, asyncio.Task[None]] = {}
        model = load(folder / parameters.bundle, runtime=parameters.runtime, cpu_math=parameters.cpu_math)
        store = _store(parameters)
        settings = with_cache_limit(_settings(parameters, model_name), model)
        self._ready: Future[None] = Future()
        self._threads = ThreadPoolExecutor(1)
        self._served = self._threads.submit(asyncio.run, self._serve(model, settings, store))
        wait((self._ready, self._served), return_when=FIRST_COMPLETED)
        if self._served.done():
            self._served.result()  # raises what was wrong

    def answer(self, request: Any) -> None:
        """Begin an answer to a request of the server."""
        call = Call(request)
        asyncio.run_coroutine_threadsafe(self._answer(call), self._loop).add_done_callback(call.end)

    def close(self) -> None:
        """Let all answers end, and let the model go."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._served.result()
        self._threads.shutdown()

    async def _serve(self, model: Model, settings: Settings, store: StateStore | None) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        async with Service.open(model, settings, store=store) as self._service:
            self._conversations = Conversations(self._service, max_idle=self._max_idle)
            count = self._conversations.__len__
            self._service.metrics.watch("sala_conversations", "Conversations that can go on.", count)
            self._ready.set_result(None)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._end_idle())
                while not self._closing.is_set():
                    await self._look()

    async def _look(self) -> None:
        """Cancel what clients have cancelled, and show metrics."""
        for call, task in [*self._calls.items()]:
            if call.is_cancelled():
                del self._calls[call]  # once is enough, and a second time would break off what ends the answer
                task.cancel()
        self._metrics.show(self._service.metrics.families())
        await self._pause()

    async def _end_idle(self) -> None:
        """End idle conversations, which waits for saves that cancellations and metrics need not wait for."""
        while not self._closing.is_set():
            await self._conversations.end_idle()
            await self._pause()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), _LOOK_SECONDS)
        except TimeoutError:
            return

    async def _answer(self, call: Call) -> None:
        """Answer a request, with an error of one line if it cannot be answered."""
        task = asyncio.current_task()
        assert task is not None
        self._calls[call] = task
        try:
            async with asyncio.timeout(None) as limit:
                await self._turn(call, limit)
        except ApiError as error:
            call.fail(error)
        except SalaError as error:
            call.fail(of_sala(error))
        except TimeoutError:
            call.fail(ApiError(CANCELLED, "the answer has taken longer than the request's timeout"))
        except asyncio.CancelledError:
            call.fail(ApiError(CANCELLED, "the client has cancelled the request"))
        finally:
            self._calls.pop(call, None)

    async def _turn(self, call: Call, limit: asyncio.Timeout) -> None:
        flags = call.flags()
        if flags.conversation is None:
            await self._send(call, ConversationState(), limit)
            return
        if not self._keeps_conversations:
            raise UnsupportedError(
                "this model has several instances, and only one of them would have the conversation's state: write the "
                "repository with --sequence-batching"
            )
        conversation = self._conversations.find(flags.conversation, is_first=flags.is_first)
        async with self._conversations.turn(conversation, is_last=flags.is_last):
            if not (flags.is_last and call.is_empty):
                await self._send(call, conversation, limit)
        if flags.is_last and call.is_empty:
            call.send(Part(ids=[], reason="stop"), Usage(prompt_tokens=0), is_last=True)

    async def _send(self, call: Call, conversation: ConversationState, limit: asyncio.Timeout) -> None:
        request, usage = call.request(), Usage(prompt_tokens=0)
        if seconds := call.seconds or request.timeout / 1e6:
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
        parts = answered(self._service, request, conversation, usage)
        if not request.stream:
            call.send(await whole(parts), usage, is_last=True)
            return
        async with aclosing(parts):
            async for part in parts:
                call.send(part, usage, is_last=part.reason is not None)


def _store(parameters: ModelParameters) -> StateStore | None:
    if parameters.state_store is None:
        return None
    return StateStore(parameters.state_store, max_bytes=parameters.state_store_bytes)


def _settings(parameters: ModelParameters, name: str) -> Settings:
    return Settings(
        model_names=(name,),
        max_sessions=parameters.max_sessions,
        max_waiting=parameters.max_waiting,
        max_wait=parameters.max_wait,
        max_context=parameters.max_context,
        max_contexts=parameters.max_contexts,
        max_cache_bytes=parameters.max_cache,
        speculation=parameters.speculation,
        default_max_tokens=parameters.max_tokens,
        chat_template=parameters.chat_template,
    )
