"""The model as an engine of NVIDIA Dynamo, written against ai-dynamo 1.6.1.

Dynamo's frontend turns requests into token ids, sends them here, and makes text of the ids that come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.common.utils.token_ids import token_ids_to_list
from dynamo.llm.exceptions import HttpError, InvalidArgument
from pydantic import ValidationError

from ..checkpoint.config import ARCHITECTURE
from ..errors import SalaError, UnsupportedError
from ..model_source import ModelSource
from ..serving.answers import AnswerRequest, Usage
from ..serving.errors import ApiError, of_sala
from ..serving.events import End, Event, Piece
from ..serving.openai.parameters import SamplingParameters
from .options import FleetOptions
from .service import open_service

if TYPE_CHECKING:
    from dynamo._core import Context

    from ..serving.service import Service

_OPTIONS = {
    "weights": "run the weights of this checkpoint, for example your fine-tune, on the bundle's engine",
    "runtime": "what runs the model: tensorrt, onnxruntime, ... (default: what fits this machine)",
    "cpu_math": "arithmetic on a CPU: exact or fast (default: exact)",
    "state_store": "a folder where conversations are kept. Workers may share it",
    "state_store_bytes": "largest size of this folder, e.g. 200G",
    "max_sessions": "requests that are answered at once",
    "max_waiting": "requests that wait for their turn. One more is refused",
    "max_context": "longest context in tokens, e.g. 1M",
    "max_contexts": "contexts that stay in memory when they have been answered",
    "max_cache": "memory for the caches of all contexts, e.g. 20G",
    "max_tokens": "tokens of an answer for which the client sets no limit",
    "speculation": "draft up to this many tokens from the text so far, and check them in one step",
}
"""What a worker takes of the options of a fleet, with its help."""
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "n",
)
_UNSUPPORTED = {
    "sampling_options": ("guided_decoding", "best_of", "length_penalty", "use_beam_search"),
    "stop_conditions": ("min_tokens", "max_thinking_tokens"),
    "output_options": ("prompt_logprobs",),
}
"""What a request may ask for and this engine has not. It is refused, not ignored."""


class SalaEngine(LLMEngine):
    """The model as Dynamo calls it. It keeps contexts, and stores them, as the server does."""

    def __init__(self, options: FleetOptions, model_path: str, exits: AsyncExitStack) -> None:
        """Args: model_path: a folder with config.json and the tokenizer, which Dynamo's frontend reads; exits: closed
        by `cleanup`.
        """
        self._options = options
        self._model_path = model_path
        self._exits = exits
        self._service: Service | None = None
        self._stopped: dict[str, list[asyncio.Event]] = {}
        """Requests that run, by their ids. Two may have one id."""

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[SalaEngine, WorkerConfig]:
        """Read the options of a command line. Raises: RequestError for a wrong one; BundleError for no bundle."""
        given, exits = vars(_parser().parse_args(argv)), AsyncExitStack()
        options = FleetOptions.of(
            {"bundle": given["bundle"], "num_gpus": 1}
            | {name: given[name] for name in _OPTIONS if given[name] is not None}
            | ({} if given["model_name"] is None else {"model_name": [given["model_name"]]})
        )
        path = exits.enter_context(tempfile.TemporaryDirectory(prefix="sala-dynamo-"))
        _write_description(options.bundle, Path(path))
        config = WorkerConfig(
            namespace=given["namespace"],
            component=given["component"],
            model_name=path,
            served_model_name=options.settings().model_names[0],
            discovery_backend=given["discovery_backend"],
            request_plane=given["request_plane"],
            event_plane=given["event_plane"],
            # Contexts can be gone on from at checkpoints only, so events about blocks would promise hits in vain.
            enable_kv_routing=False,
        )
        return cls(options, path, exits), config

    async def start(self, worker_id: int) -> EngineConfig:
        """Load the model. Raises: as `open_service`."""
        service = self._service = await self._exits.enter_async_context(open_service(self._options))
        return EngineConfig(
            model=self._model_path,
            served_model_name=service.settings.model_names[0],
            llm=LlmRegistration(context_length=service.answers.max_context, max_num_seqs=self._options.max_sessions),
        )

    async def generate(self, request: Mapping[str, Any], context: Context) -> AsyncGenerator[dict[str, Any]]:
        """Answer token ids with token ids, in chunks as Dynamo describes them.

        Raises: InvalidArgument for what is wrong, or the model cannot do; HttpError of status 429 or 503 if there is no
            room now, and of 500 for a fault.
        """
        service = self._service
        assert service is not None
        ids = np.asarray(token_ids_to_list(request["token_ids"]), np.int32)
        stopped = asyncio.Event()
        self._stopped.setdefault(context.id(), []).append(stopped)
        usage = Usage(len(ids))
        try:
            asked = _asked(service, ids, request)
            async with service.answers.answering(asked, usage) as events, aclosing(_until(stopped, events)) as found:
                async for event in found:
                    if isinstance(event, Piece):
                        yield _chunk(event, with_logprobs=_logprobs(request) is not None)
                    elif isinstance(event, End):
                        yield {**_empty(event.choice), "finish_reason": event.reason, **_described(usage)}
            if stopped.is_set():
                yield {**_empty(0), "finish_reason": "cancelled", **_described(usage)}
        except ApiError as error:
            raise as_dynamo(error) from None
        except SalaError as error:
            raise as_dynamo(of_sala(error)) from None
        finally:
            running = self._stopped[context.id()]
            running.remove(stopped)
            if not running:
                del self._stopped[context.id()]

    async def abort(self, context: Context) -> None:
        """End an answer: its client has left. What has been read is kept."""
        for stopped in self._stopped.get(context.id(), ()):
            stopped.set()

    async def cleanup(self) -> None:
        """End all answers, save their contexts, and let go of the model."""
        self._service = None
        await self._exits.aclose()


def _write_description(bundle: str, folder: Path) -> None:
    """Write what Dynamo's frontend reads of a model: its configuration, and the files of its tokenizer.

    Raises: BundleError if there is no bundle; UnsupportedError if it has no tokenizer.
    """
    source = ModelSource.of_bundle(Path(bundle))
    files = source.text_files()
    if not files:
        raise UnsupportedError(f"{bundle} has no tokenizer, and Dynamo sends text: build it from a checkpoint with one")
    # Dynamo reads no config.json without an architecture.
    config = {"architectures": [ARCHITECTURE], **source.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(file.content)


def _asked(service: Service, ids: np.ndarray[Any, np.dtype[np.int32]], request: Mapping[str, Any]) -> AnswerRequest:
    """Raises: ApiError for what is wrong, or not supported."""
    for group, names in _UNSUPPORTED.items():
        for name in names:
            if (request.get(group) or {}).get(name):
                raise ApiError(400, f"{group}.{name} is not supported by this engine: leave it out")
    stop, sampling = request.get("stop_conditions") or {}, request.get("sampling_options") or {}
    # The hidden ones are the model's own, as Dynamo's frontend reads them.
    hidden = () if stop.get("ignore_eos") else stop.get("stop_token_ids_hidden") or ()
    try:
        parameters = SamplingParameters(
            **{name: sampling[name] for name in _SAMPLING if sampling.get(name) is not None},
            ignore_eos=bool(stop.get("ignore_eos")),
            stop_token_ids=[*hidden, *(stop.get("stop_token_ids") or ())],
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ApiError(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    limit = service.answers.room_for(len(ids), stop.get("max_tokens"), service.settings.default_max_tokens)
    return AnswerRequest(
        ids=ids,
        options=parameters.options(
            service.stop_tokens,
            choices=parameters.n or 1,
            max_new_tokens=limit,
            logprobs=_logprobs(request),
        ),
        with_tokens=True,
    )


def _logprobs(request: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens a request asks for at each place."""
    found = (request.get("output_options") or {}).get("logprobs")
    return None if found is None else int(found)


async def _until(stopped: asyncio.Event, events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
    """The events of an answer up to when somebody stops it."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(stopped.wait())]
    try:
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            tasks[1:] = [coming]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done() or (event := coming.result()) is None:
                return
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def as_dynamo(error: ApiError) -> InvalidArgument | HttpError:
    """The error from which Dynamo's frontend makes an answer of the same status, 400 for what the client can mend.

    The other classes of Dynamo either become status 500, or take the worker out of service.
    """
    if error.status_code < 500 and error.status_code != 429:
        return InvalidArgument(error.message)
    return HttpError(error.status_code, error.message)


def _chunk(piece: Piece, *, with_logprobs: bool) -> dict[str, Any]:
    chunk: dict[str, Any] = {"token_ids": [token.id for token in piece.tokens], "index": piece.choice}
    if with_logprobs:
        found = [token.logprobs for token in piece.tokens if token.logprobs is not None]
        chunk["log_probs"] = [each.logprob for each in found]
        chunk["top_logprobs"] = [
            [
                {"rank": rank, "token_id": token_id, "logprob": logprob}
                for rank, (token_id, logprob) in enumerate(each.top, 1)
            ]
            for each in found
        ]
    return chunk


def _empty(choice: int) -> dict[str, Any]:
    return {"token_ids": [], "index": choice}


def _described(usage: Usage) -> dict[str, Any]:
    return {
        "completion_usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sala_export.fleet.dynamo", description="A worker of NVIDIA Dynamo that runs a bundle."
    )
    parser.add_argument("bundle", help="a bundle directory")
    parser.add_argument("--model-name", help="the name by which clients ask for the model")
    parser.add_argument("--namespace", default="dynamo", help="as of the frontend (default: dynamo)")
    parser.add_argument("--component", default="backend", help="the name of this kind of worker (default: backend)")
    for name, choices, default, text in (
        ("--discovery-backend", ["kubernetes", "etcd", "file", "mem"], "etcd", "where frontends find this worker"),
        ("--request-plane", ["tcp", "nats"], "tcp", "how requests come"),
        ("--event-plane", ["nats", "zmq"], None, "how events of workers go"),
    ):
        told = f"{text}, as of the frontend" + (f" (default: {default})" if default else "")
        parser.add_argument(name, choices=choices, default=default, help=told)
    for name, text in _OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=text)
    return parser
