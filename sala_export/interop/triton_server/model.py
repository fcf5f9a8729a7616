"""The model that the Python backend of Triton Inference Server runs, one in a process of its own for each instance.

The server calls it in its own thread. Answers are drawn in an event loop, in a second one.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ...errors import SalaError, UnsupportedError
from ...loading import load
from ...runtime.model import Model
from ...runtime.state_store import StateStore
from ...serving.answers import Usage
from ...serving.errors import ApiError, of_sala
from ...serving.service import Service, with_cache_limit
from ...serving.settings import Settings
from .conversations import Conversation, Conversations
from .metrics import ShownMetrics
from .options import ModelParameters
from .requests import GenerateRequest, SequenceFlags
from .tensors import array_of, value_of
from .turns import Part, answered, whole

_LOOK_SECONDS = 0.2
"""How often the model looks for requests that were cancelled, for idle conversations, and at its metrics."""
_CANCELLED = 499
_CODES = {
    400: "INVALID_ARG",
    404: "NOT_FOUND",
    429: "UNAVAILABLE",
    _CANCELLED: "CANCELLED",
    503: "UNAVAILABLE",
}
"""Names of Triton's codes, by the status that a server of HTTP would answer."""


class TritonPythonModel:
    """What the server makes, asks and lets go. Triton gives the class and its methods their names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle. Raises: TritonModelException of one line."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            _see_one_gpu(int(args["model_instance_device_id"]))
        try:
            _require_arrays()
            self._parameters = parameters = ModelParameters.of_config(config)
            model = _loaded(parameters, Path(args["model_repository"]) / args["model_version"])
            store = _store(parameters)
            self._is_alone = _is_alone(config)
            settings = with_cache_limit(_settings(parameters, args["model_name"]), model)
            self._metrics = ShownMetrics({"model": args["model_name"], "instance": args["model_instance_name"]})
            self._ready: Future[None] = Future()
            self._threads = ThreadPoolExecutor(1)
            self._served = self._threads.submit(asyncio.run, self._serve(model, settings, store))
            wait((self._ready, self._served), return_when=FIRST_COMPLETED)
            if self._served.done():
                self._served.result()  # raises what was wrong
        except SalaError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin answers. They come by themselves, and `execute` returns at once."""
        for request in requests:
            call = _Call(request)
            asyncio.run_coroutine_threadsafe(self._answer(call), self._loop).add_done_callback(call.end)

    def finalize(self) -> None:
        """Let all answers end, and free the model."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._served.result()
        self._threads.shutdown()

    async def _serve(self, model: Model, settings: Settings, store: StateStore | None) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._calls: dict[_Call, asyncio.Task[None]] = {}
        async with Service.open(model, settings, store=store) as self._service:
            self._conversations = Conversations(self._service, max_idle=self._parameters.max_idle)
            count = self._conversations.__len__
            self._service.metrics.watch("sala_conversations", "Conversations that can go on.", count)
            self._ready.set_result(None)
            while not self._closing.is_set():
                await self._look()

    async def _look(self) -> None:
        """Cancel what clients have cancelled, end idle conversations, and show metrics."""
        for call, task in [*self._calls.items()]:
            if call.is_cancelled():
                task.cancel()
        await self._conversations.end_idle()
        self._metrics.show(self._service.metrics.families())
        try:
            await asyncio.wait_for(self._closing.wait(), _LOOK_SECONDS)
        except TimeoutError:
            return

    async def _answer(self, call: _Call) -> None:
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
            call.fail(ApiError(_CANCELLED, "the answer has taken longer than the request's timeout"))
        except asyncio.CancelledError:
            call.fail(ApiError(_CANCELLED, "the client has cancelled the request"))
        finally:
            del self._calls[call]

    async def _turn(self, call: _Call, limit: asyncio.Timeout) -> None:
        flags = call.flags()
        if flags.conversation is None:
            await self._send(call, Conversation(), limit)
            return
        if not self._is_alone:
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

    async def _send(self, call: _Call, conversation: Conversation, limit: asyncio.Timeout) -> None:
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


class _Call:
    """A request of the server, and the way back."""

    def __init__(self, request: Any) -> None:
        """Take all that is in a request: its tensors belong to the server."""
        self._sender = request.get_response_sender()
        self._outputs = set(request.requested_output_names())
        self._inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self._conversation, self._flags = request.correlation_id(), request.flags()
        self._parameters: str = request.parameters()
        self._is_over = False  # then the server has freed what the sender stands for, and ends if somebody asks it
        self.seconds: float = request.timeout() / 1e6
        """That the answer may take. 0: no limit."""

    def flags(self) -> SequenceFlags:
        """The request's conversation. Raises: RequestError for what cannot be one."""
        return SequenceFlags(
            self._conversation,
            self._parameters,
            is_first=bool(self._flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
            is_last=bool(self._flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
        )

    def request(self) -> GenerateRequest:
        """What is asked for. Raises: ApiError or RequestError for the first thing that is wrong."""
        values = {name: value_of(name, tensor) for name, tensor in self._inputs.items()}
        return GenerateRequest.of(values, self._parameters)

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to answer."""
        return not self._inputs.keys() & {"text_input", "input_ids", "messages"}

    def is_cancelled(self) -> bool:
        """Whether the client wants no answer any more."""
        return not self._is_over and bool(self._sender.is_cancelled())

    def send(self, part: Part, usage: Usage, *, is_last: bool) -> None:
        """Send a part of the answer, or all of it. The last one tells how it ended."""
        values: dict[str, Any] = {"text_output": part.text, "output_ids": part.ids}
        if part.reasoning:
            values["reasoning_output"] = part.reasoning
        if is_last:
            values["finish_reason"] = part.reason
            values["num_input_tokens"] = usage.prompt_tokens
            values["num_cached_tokens"] = usage.cached_tokens
            values["num_output_tokens"] = usage.completion_tokens
        tensors = [pb_utils.Tensor(name, array_of(name, values[name])) for name in values if name in self._outputs]
        self._respond(pb_utils.InferenceResponse(output_tensors=tensors), is_last=is_last)

    def _respond(self, response: Any, *, is_last: bool) -> None:
        self._is_over = is_last
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0)

    def fail(self, error: ApiError) -> None:
        """Send the error that ends the answer, if it has not ended."""
        if self._is_over:
            return
        code = getattr(pb_utils.TritonError, _CODES.get(error.status_code, "INTERNAL"))
        told = pb_utils.TritonError(error.message, code)
        self._respond(pb_utils.InferenceResponse(error=told), is_last=True)

    def end(self, done: Future[None]) -> None:
        """Tell the client of a fault of ours, which would else wait for ever. The log has more."""
        if (fault := done.exception()) is not None:
            pb_utils.Logger.log_error(f"a fault of sala-export: {fault!r}")
            self.fail(ApiError(500, f"a fault of this model ({type(fault).__name__}): the server's log tells more"))


def _see_one_gpu(number: int) -> None:
    """Let the CUDA driver, which is not loaded yet, see only the instance's GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)


def _require_arrays() -> None:
    """Raises: UnsupportedError if the server reads arrays of this NumPy wrongly, as old ones do those of NumPy 2."""
    values = np.arange(4, dtype=np.int32)
    read = pb_utils.Tensor.from_dlpack("values", pb_utils.Tensor("values", values).to_dlpack()).as_numpy()
    if not np.array_equal(read, values):
        raise UnsupportedError(
            f"the Python backend of this Triton Inference Server cannot read arrays of NumPy {np.__version__}: install "
            "'numpy<2' for it, or take a newer server"
        )


def _loaded(parameters: ModelParameters, folder: Path) -> Model:
    return load(folder / parameters.bundle, runtime=parameters.runtime, cpu_math=parameters.cpu_math)


def _store(parameters: ModelParameters) -> StateStore | None:
    if parameters.state_store is None:
        return None
    return StateStore(parameters.state_store, max_bytes=parameters.state_store_bytes)


def _is_alone(config: dict[str, Any]) -> bool:
    """Whether a conversation can have its state nowhere else, or the server leads its turns to where that is."""
    groups = config["instance_group"]
    return "sequence_batching" in config or sum(each["count"] * max(1, len(each["gpus"])) for each in groups) == 1


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
