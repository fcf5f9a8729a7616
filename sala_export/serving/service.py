"""A loaded model with all that answers requests on it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..engine.host import available_host_bytes
from ..errors import RequestError, UnsupportedError
from .answers import Answers
from .contexts import Contexts
from .errors import ApiError
from .grammar import Grammars
from .kept import KeptContexts
from .metrics import Metrics
from .parsing import FORMATS, choose_format
from .prompts import Prompts
from .settings import MAX_SESSIONS, Settings

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.state_store import StateStore
    from ..runtime.text import Tokenizer


class Service:
    """What the endpoints share. Of one event loop; `open` makes it."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        settings: Settings,
        *,
        answers: Answers,
        kept: KeptContexts,
        store: StateStore | None,
        metrics: Metrics,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.answers = answers
        self.kept = kept
        self.metrics = metrics
        self.created = int(time.time())
        self._token_texts: dict[int, str] = {}
        """Of tokens that were asked for, at most all of the vocabulary."""
        self.is_draining = False
        """True from when the server was asked to end."""
        self.stop_tokens = model.stop_token_ids
        template = tokenizer.chat
        if template is not None and settings.chat_template is not None:
            template = template.named(settings.chat_template)
        self.prompts = Prompts(tokenizer, template)
        self.contexts = Contexts(model, self.prompts, answers, kept, store, max_waiting_bytes=settings.max_body_bytes)
        source = self.prompts.template_source
        self.output_format: str = choose_format(source) if settings.tool_parser == "auto" else settings.tool_parser
        """The form in which the model thinks and calls tools."""

    @classmethod
    @asynccontextmanager
    async def open(cls, model: Model, settings: Settings, *, store: StateStore | None) -> AsyncIterator[Service]:
        """Answer requests on a model until the block is left.

        Raises: UnsupportedError without a tokenizer; SessionError and RequestError for settings that do not fit;
            StateError for a store of another model.
        """
        tokenizer = require_text(model)
        check(settings, tokenizer)
        metrics = Metrics()
        max_context = settings.max_context or model.default_max_context
        contexts = KeptContexts(
            model,
            store=store,
            max_contexts=settings.max_contexts,
            max_cache_bytes=settings.max_cache_bytes,
            max_context=max_context,
            keeps_unsaved=settings.waits_for_store,
        )
        with model.scheduler(
            max_running=settings.max_sessions,
            max_waiting=settings.max_waiting,
            max_cache_bytes=settings.max_cache_bytes,
        ) as scheduler:
            answers = Answers(
                tokenizer,
                scheduler,
                contexts,
                metrics,
                max_context=max_context,
                max_wait=settings.max_wait,
                most_requests=(settings.max_sessions or MAX_SESSIONS) + settings.max_waiting,
                speculation=settings.speculation,
                waits_for_store=settings.waits_for_store,
            )
            metrics.watch("sala_cache_bytes", "Bytes of the caches of all sessions.", lambda: model.cache_bytes)
            metrics.watch("sala_kept_contexts", "Contexts that requests can go on from.", lambda: len(contexts))
            for stage, what in (("waiting", "wait"), ("prefill", "read prompts"), ("generate", "write answers")):
                metrics.watch(f"sala_requests_{stage}", f"Requests that {what}.", answers.counter(stage))
            service = cls(model, tokenizer, settings, answers=answers, kept=contexts, store=store, metrics=metrics)
            await service.contexts.refresh()
            metrics.watch("sala_named_contexts", "Contexts with names.", lambda: len(service.contexts))
            try:
                yield service
            finally:
                service.is_draining = True
                await answers.drain()
                await contexts.close()

    @cached_property
    def grammars(self) -> Grammars:
        """What keeps answers to a form. Making it takes seconds for a large vocabulary: first used in a thread."""
        return Grammars(self.tokenizer, self.model.vocab_size, self.stop_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of a token in the middle of a text."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self._made_token_text(token_id)
        return self._token_texts[token_id]

    def _made_token_text(self, token_id: int) -> str:
        decoder = self.tokenizer.stream_decoder(skip_special_tokens=False)
        for each in self._before_tokens:  # the first word of a text may lose its space
            decoder.push(each)
        return decoder.push(token_id) + decoder.finish()

    @cached_property
    def _before_tokens(self) -> list[int]:
        return self.tokenizer.encode("a", add_special_tokens=False)

    def require_model(self, name: str) -> None:
        """Raises: ApiError if a client asks for another model."""
        if name not in self.settings.model_names:
            known = ", ".join(self.settings.model_names)
            raise ApiError(
                404, f"the model {name!r} is not here: this server has {known}", param="model", code="model_not_found"
            )


def require_text(model: Model) -> Tokenizer:
    """The tokenizer of a model. Raises: UnsupportedError if it has none that reads chats."""
    from ..runtime.text import Tokenizer

    if not isinstance(model.tokenizer, Tokenizer):
        raise UnsupportedError(
            "the model has no tokenizer, so it cannot read text: build it from a checkpoint with one"
        )
    return model.tokenizer


def with_cache_limit(settings: Settings, model: Model) -> Settings:
    """The settings with a limit for caches: on the CPU, half of the free memory if nobody set another.

    A host gives more memory than it has. A GPU does not.
    """
    if settings.max_cache_bytes is not None or model.on_gpu:
        return settings
    return replace(settings, max_cache_bytes=available_host_bytes() // 2)


def check(settings: Settings, tokenizer: Tokenizer) -> None:
    """Raises: RequestError for settings that do not fit the model."""
    if settings.tool_parser not in ("auto", *FORMATS):
        raise RequestError(f"--tool-parser {settings.tool_parser}: choose auto, {', '.join(FORMATS)}")
    if settings.chat_template is not None and tokenizer.chat is None:
        raise RequestError("--chat-template: the model came without a chat template")
