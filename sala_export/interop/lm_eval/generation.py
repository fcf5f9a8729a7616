"""Requests of the harness for answers, as options of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs

from ...errors import RequestError
from ..shared_contexts import Ids
from ..task_text import TaskText, as_ids

if TYPE_CHECKING:
    from ...runtime.model import Model
    from ...runtime.options import GenerateOptions

_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_ELSEWHERE = ("until", "max_gen_toks", "do_sample", "temperature", "seed")
_USUAL_TEMPERATURE = 1.0
"""With `do_sample`, where nobody says another. It is that of the harness's other models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One answer that is asked for."""

    prompt: Ids
    """int32 [tokens], at least one."""
    options: GenerateOptions


@dataclass(kw_only=True, slots=True)
class GenerationReader:
    """Makes a `Generation` of what the harness asks for."""

    model: Model
    text: TaskText
    prefix_token_id: int
    """Begins an answer to nothing."""
    max_context: int
    default_tokens: int
    """Tokens of an answer, where a task does not say."""
    seed: int
    _seen: dict[str, int] = field(default_factory=dict)

    def read(self, prompt: str, given: Mapping[str, Any]) -> Generation:
        """Read a request. Equal ones get different seeds, so that their answers differ where they are sampled.

        Raises: RequestError for an option that is unknown or wrong, or an answer that leaves no room for its prompt;
            SessionError for a value out of its range.
        """
        options = normalize_gen_kwargs(dict(given), default_max_gen_toks=self.default_tokens)
        _require_known(options)
        new_tokens = options["max_gen_toks"]
        if new_tokens >= self.max_context:
            raise RequestError(
                f"max_gen_toks is {new_tokens}, and max_context is {self.max_context}, which leaves no room for a "
                "prompt: give a larger max_context in model_args, or --gen_kwargs max_gen_toks=N"
            )
        ids = self.text.encode(prompt) or [self.prefix_token_id]
        ids, new_tokens = maybe_truncate(ids, max_gen_toks=new_tokens, max_model_len=self.max_context)
        until = [each for each in options["until"] if each]
        words = [each for each in until if isinstance(each, str)]
        generate: GenerateOptions = {
            **{name: options[name] for name in _SAMPLING if name in options},  # type: ignore[typeddict-item]
            "max_new_tokens": new_tokens,
            "temperature": _temperature(options, given),
            "stop_strings": until or None,
            "stop_tokens": [*self.model.stop_token_ids, *self.text.stop_tokens(words)],
            "seed": self._seed(prompt, given),
        }
        self.model.check_generate(**generate)
        return Generation(prompt=as_ids(ids), options=generate)

    def _seed(self, prompt: str, given: Mapping[str, Any]) -> int:
        asked = repr((prompt, sorted(given.items())))
        place = self._seen[asked] = self._seen.get(asked, -1) + 1
        return int(given.get("seed", self.seed)) + place


def _require_known(options: Mapping[str, Any]) -> None:
    """Raises: RequestError naming the first option that is unknown."""
    for name, value in options.items():
        # One beam is what everybody does.
        if name not in (*_SAMPLING, *_ELSEWHERE) and (name, value) != ("num_beams", 1):
            raise RequestError(
                f"the generation option {name}={value} is none of the model sala: take it out of the task's "
                f"generation_kwargs and of --gen_kwargs. It takes {', '.join((*_SAMPLING, *_ELSEWHERE))}"
            )


def _temperature(options: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    if not options["do_sample"]:
        return 0.0
    value = given.get("temperature")
    return _USUAL_TEMPERATURE if value is None else float(value)
