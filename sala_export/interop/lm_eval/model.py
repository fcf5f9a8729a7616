"""The model `sala` of lm-evaluation-harness."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ...errors import RequestError, UnsupportedError
from ...loading import load
from ...runtime.model import Model
from ...runtime.session import Session
from ...runtime.text import Tokenizer
from ..scoring import Continuation, Score, score_continuations
from ..shared_contexts import read_contexts
from ..task_text import TaskText, as_ids
from .arguments import ModelArguments
from .generation import Generation, GenerationReader

logger = logging.getLogger(__name__)
_LEAST_CONTEXT = 1
"""Tokens before a continuation. The first token of all has no probability."""


class SalaLM(TemplateLM):
    """A bundle or checkpoint that answers what the harness asks.

    Contexts that begin alike are read together, whatever the order of the requests, and in one piece. Results are those
    of each request alone, but for the rounding of sums.
    """

    def __init__(self, **arguments: Any) -> None:
        """Args: arguments: fields of `ModelArguments`.

        Raises: RequestError for a wrong argument; UnsupportedError if the model has no tokenizer; otherwise as
            `sala_export.load`.
        """
        super().__init__()
        self.arguments = asked = ModelArguments.of(arguments)
        self.model: Model = load(
            asked.pretrained,
            runtime=asked.runtime,
            device=asked.device,
            precision=asked.precision,
            threads=asked.threads,
            weights=asked.weights,
            cpu_math=asked.cpu_math,
        )
        tokenizer = self.model.tokenizer
        if not isinstance(tokenizer, Tokenizer):
            raise UnsupportedError(
                f"{asked.pretrained} has no tokenizer, and tasks are made of text: build it from a checkpoint that "
                "has tokenizer.json"
            )
        variables = {} if asked.enable_thinking is None else {"enable_thinking": asked.enable_thinking}
        self.text = TaskText(tokenizer, adds_beginning=asked.add_bos_token, chat_variables=variables)
        # An engine that serves fewer tokens refuses the number here, before anything is read.
        self.max_length = self._session().max_context

    def _session(self) -> Session:
        return self.model.session(max_context=self.arguments.max_context)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        if self.arguments.prefix_token_id is not None:
            return self.arguments.prefix_token_id
        return self.text.beginning[0] if self.text.beginning else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids of a text, as `TaskText.encode`. The harness calls it."""
        return self.text.encode(string, add_special_tokens=add_special_tokens)

    @property
    def tokenizer_name(self) -> str:
        """Tells caches of rendered prompts apart."""
        return f"sala-{self.text.template_digest}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template that is applied, chosen by name or the first. None without one."""
        if chat_template is False or chat_template is None:
            return None
        return self.text.choose_template(chat_template if isinstance(chat_template, str) else None)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as text."""
        return self.text.render(chat_history, add_generation_prompt=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_fingerprint": self.model.fingerprint,
            "model_runtime": self.model.runtime,
            "model_precision": self.model.precision,
            "max_context": self.max_length,
        }

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: object,
    ) -> list[tuple[float, bool]]:
        asked = [self._continuation(context, tokens, text) for text, context, tokens in requests]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        for at, score in self._scores(asked, disable_tqdm):
            results[at] = (score.logprob, score.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[at][0], results[at])
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of texts.

        A text that is longer than the context is cut into windows by the harness. Each token counts once, and the last
        window begins early enough to be full.
        """
        windows: list[Continuation] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            (text,) = request.args
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                # The last token is read too.
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for context, tokens in map(make_disjoint_window, cut):
                windows.append(Continuation(context=as_ids(context), tokens=as_ids(tokens)))
                owners.append(place)
        found = dict(self._scores(windows, disable_tqdm))
        sums = [0.0] * len(requests)
        # In the order of the text, so that no other request changes how a sum is rounded.
        for at, place in enumerate(owners):
            sums[place] += found[at].logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts, without the text that ends them."""
        reader = GenerationReader(
            model=self.model,
            text=self.text,
            prefix_token_id=self.prefix_token_id,
            max_context=self.max_length,
            default_tokens=self.arguments.max_gen_toks,
            seed=self.arguments.seed,
        )
        asked = [reader.read(*request.args) for request in requests]
        answers = [""] * len(asked)
        drawn = self._drawn(asked)
        for at, answer in tqdm(drawn, desc="Generating", total=len(asked), disable=disable_tqdm):
            answers[at] = answer
            self.cache_hook.add_partial("generate_until", requests[at].args, answer)
        return answers

    def _drawn(self, asked: Sequence[Generation]) -> Iterator[tuple[int, str]]:
        """Yield the place and the text of each answer. As many as `batch_size` are drawn together."""
        places = read_contexts([each.prompt for each in asked], self._session, self.model.dense_len)
        size = self.arguments.batch_size
        with self.model.scheduler(max_running=size) as scheduler:
            while group := list(islice(places, size)):
                answers = [scheduler.submit(context.own(), **asked[at].options) for at, context in group]
                for (at, _), answer in zip(group, answers, strict=True):
                    yield at, "".join(answer)

    def _scores(self, asked: Sequence[Continuation], disable_tqdm: bool) -> Iterator[tuple[int, Score]]:
        scores = score_continuations(asked, self._session, self.model.dense_len)
        progress = tqdm(scores, desc="Scoring", total=len(asked), disable=disable_tqdm)
        return cast("Iterator[tuple[int, Score]]", iter(progress))

    def _continuation(self, context: list[int], tokens: list[int], text: tuple[str, str]) -> Continuation:
        """A request that fits. Raises: RequestError if the continuation has no tokens of its own, or too many."""
        if not tokens:
            raise RequestError(
                f"the continuation {text[1][:40]!r} behind {text[0][-40:]!r} has no token of its own: change the task, "
                "so that a token begins where the continuation does"
            )
        if len(tokens) > self.max_length - _LEAST_CONTEXT:
            raise RequestError(
                f"a continuation has {len(tokens)} tokens, and max_context is {self.max_length}: give a larger "
                "max_context in model_args"
            )
        room = self.max_length - len(tokens)
        if len(context) > room:
            logger.warning(
                "a context of %d tokens and its continuation of %d exceed max_context=%d: the context loses its first "
                "%d tokens",
                len(context),
                len(tokens),
                self.max_length,
                len(context) - room,
            )
        return Continuation(context=as_ids(context[-room:]), tokens=as_ids(tokens))
