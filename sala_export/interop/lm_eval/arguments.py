"""What stands behind `--model_args`, checked before a model is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import RequestError, SessionError
from ...runtime.options import MOST_THREADS, flag, optional_number, optional_text, whole_number
from ...specs import MOST_TOKENS, parse_tokens

_AUTO_BATCH = 8
"""As many answers as a scheduler draws at once by itself."""
_MOST_BATCH = 1024
_HARNESS_DEVICE = "cuda:0"
"""The harness says so if the user says nothing. Then it is for the runtime to choose, which takes that GPU too."""
_OF_THE_HARNESS = ("trust_remote_code",)
"""The harness adds these to the arguments of every model. They are about data sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArguments:
    """The arguments of the model `sala`."""

    pretrained: str
    """A bundle directory. With `runtime=torch` also a checkpoint directory or hub id."""
    runtime: str = "auto"
    device: str | None = None
    precision: str | None = None
    threads: int = 0
    weights: str | None = None
    cpu_math: str | None = None
    """As these six are of `sala_export.load`."""
    max_context: int | None = None
    """Tokens of a request with its answer. None: what the model was made for."""
    batch_size: int = 1
    """Answers that are drawn together."""
    max_gen_toks: int = 256
    """Tokens of an answer, where a task does not say."""
    add_bos_token: bool = True
    """Begin texts as the tokenizer does."""
    prefix_token_id: int | None = None
    """The token before a text without a context. None: the one that begins texts, or else the one that ends them."""
    enable_thinking: bool | None = None
    """A variable of the chat template. None: not given to it."""
    seed: int = 0
    """Where the random numbers of sampling begin."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ModelArguments:
        """The arguments as the harness gives them: texts, numbers, booleans and None.

        Raises: RequestError naming the argument that is missing, unknown or wrong.
        """
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in (*known, "max_batch_size", *_OF_THE_HARNESS):
                (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise RequestError(
                    f"model_args has {name}, which the model sala does not know: did you mean {near}? "
                    f"It takes {', '.join(known)}"
                )
        if not given.get("pretrained"):
            raise RequestError(
                "model_args has no pretrained: name the model, as in --model_args pretrained=out.sala,max_context=32K"
            )
        try:
            return cls(**_checked({name: value for name, value in given.items() if not _is_default(name, value)}))
        except SessionError as error:
            raise RequestError(f"model_args: {error}") from None


def _is_default(name: str, value: object) -> bool:
    return value is None or (name, value) == ("device", _HARNESS_DEVICE)


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments in their types. Raises: SessionError for one that has another type or value."""
    # A directory may be named by a number.
    checked: dict[str, Any] = {"pretrained": str(given["pretrained"])}
    for name in ("runtime", "device", "precision", "weights", "cpu_math"):
        if name in given:
            checked[name] = optional_text(name, given[name])
    for name, least, most in (
        ("threads", 0, MOST_THREADS),
        ("max_gen_toks", 1, MOST_TOKENS),
        ("prefix_token_id", 0, MOST_TOKENS),
        ("seed", 0, 2**63 - 1),
    ):
        if name in given:
            checked[name] = whole_number(name, given[name], least, most)
    for name in ("add_bos_token", "enable_thinking"):
        if name in given:
            checked[name] = flag(name, given[name])
    if "max_context" in given:
        size = given["max_context"]
        size = parse_tokens(size) if isinstance(size, str) else size
        # A token that is scored, and one before it.
        checked["max_context"] = whole_number("max_context", size, 2, MOST_TOKENS)
    checked["batch_size"] = _batch_size(given.get("batch_size", 1), given.get("max_batch_size"))
    return checked


def _batch_size(size: object, most: object) -> int:
    """Answers that are drawn together. The harness gives a number, its digits, `auto` or `auto:N`."""
    limit = optional_number("max_batch_size", most, 1, _MOST_BATCH) or _AUTO_BATCH
    if isinstance(size, str):
        if size.partition(":")[0] == "auto":
            return limit
        size = int(size) if size.isdecimal() else size
    return whole_number("batch_size", size, 1, _MOST_BATCH)
