"""The model as an engine of NVIDIA Dynamo, written against ai-dynamo 1.6.1.

Dynamo's frontend turns requests into token ids, sends them here, and makes text of the ids that come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.common.utils.token_ids import token_ids_to_list
from dynamo.llm.exceptions import InvalidArgument
from pydantic import ValidationError

from ..errors import SalaError, UnsupportedError
from ..model_source import ModelSource
from ..serving.answers import AnswerRequest, End, Event, Piece, Usage
from ..serving.errors import ApiError
from ..serving.openai.parameters import SamplingParameters
from .options import FleetOptions
from .service import open_service

if TYPE_CHECKING:
    from dynamo._core import Context

    from ..serving.service import Service

_ARCHITECTURE = "MiniCPMSALAForCausalLM"
"""Of the published config.json. Dynamo does not read one without."""
_OPTIONS = (
    "weights",
    "runtime",
    "cpu_math",
    "state_store",
    "state_store_bytes",
    "max_sessions",
    "max_waiting",
    "max_context",
    "max_contexts",
    "max_cache",
    "max_tokens",
    "speculation",
)
"""What a worker takes of the options of a fleet."""
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
        self._stopped: dict[str, asyncio.Event] = {}

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[SalaEngine, WorkerConfig]:
        """Read the options of a command line. Raises: RequestError for a wrong one; BundleError for no bundle."""
        given, exits = vars(_parser().parse_args(argv)), AsyncExitStack()
        options = FleetOptions.of(
            {"bundle": given["bundle"], "num_gpus": 1}
            | {name: given[name] for name in _OPTIONS if given[name] is not None}
        )
        name = given["model_name"] or options.settings().model_names[0]
        path = exits.enter_context(tempfile.TemporaryDirectory(prefix="sala-dynamo-"))
        _write_description(options.bundle, Path(path))
        config = WorkerConfig(
            namespace=given["namespace"],
            component=given["component"],
            model_name=path,
            served_model_name=name,
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

        Raises: InvalidArgument for what the model cannot do, or has no room for.
        """
        service = self._service
        assert service is not None
        ids = np.asarray(token_ids_to_list(request["token_ids"]), np.int32)
        stopped = self._stopped.setdefault(context.id(), asyncio.Event())
        usage = Usage(len(ids))
        try:
            asked = _asked(service, ids, request)
            async with service.answers.answering(asked, usage) as events:
                async for event in _until(stopped, events):
                    if isinstance(event, Piece):
                        yield _chunk(event, with_logprobs=_logprobs(request) is not None)
                    elif isinstance(event, End):
                        yield {**_empty(event.choice), "finish_reason": event.reason, **_described(usage)}
            if stopped.is_set():
                yield {**_empty(0), "finish_reason": "cancelled", **_described(usage)}
        except (ApiError, SalaError) as error:
            raise InvalidArgument(error.message if isinstance(error, ApiError) else str(error)) from None
        finally:
            del self._stopped[context.id()]

    async def abort(self, context: Context) -> None:
        """End an answer: its client has left. What has been read is kept."""
        if (stopped := self._stopped.get(context.id())) is not None:
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
    config = {"architectures": [_ARCHITECTURE], **source.config.to_dict()}
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
    hidden = [*(stop.get("stop_token_ids_hidden") or ()), *(stop.get("stop_token_ids") or ())]
    try:
        parameters = SamplingParameters(
            **{name: sampling[name] for name in _SAMPLING if sampling.get(name) is not None},
            ignore_eos=bool(stop.get("ignore_eos")),
            stop_token_ids=None if stop.get("ignore_eos") else hidden,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ApiError(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    limit = service.answers.room_for(len(ids), stop.get("max_tokens"), service.settings.default_max_tokens)
    return AnswerRequest(
        ids=ids,
        # A token comes with its id only where its probability is asked for.
        options=parameters.options(
            service.stop_tokens,
            choices=parameters.n or 1,
            max_new_tokens=limit,
            logprobs=_logprobs(request) or 0,
        ),
        with_tokens=True,
    )


def _logprobs(request: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens a request asks for at each place."""
    found = (request.get("output_options") or {}).get("logprobs")
    return None if found is None else int(found)


async def _until(stopped: asyncio.Event, events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
    """The events of an answer up to when somebody stops it."""
    stopping = asyncio.ensure_future(stopped.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.wait((coming,))
                return
            if (event := coming.result()) is None:
                return
            yield event
    finally:
        stopping.cancel()


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
    parser.add_argument("--namespace", default="dynamo")
    parser.add_argument("--component", default="backend")
    parser.add_argument("--discovery-backend", default="etcd", choices=["kubernetes", "etcd", "file", "mem"])
    parser.add_argument("--request-plane", default="tcp", choices=["tcp", "nats"])
    parser.add_argument("--event-plane", choices=["nats", "zmq"])
    for name in _OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", help="as in docs/fleet.md")
    return parser
