"""Values that a caller gives, checked before they reach the C++ runtime, whose own types end somewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from ..errors import InputError, RequestError, SessionError
from ..specs import MOST_DRAFT_TOKENS, MOST_TOKENS, one_of, parse_bytes

if TYPE_CHECKING:
    from . import _native
    from .token_constraint import TokenConstraint

MOST_THREADS = 1024
MOST_LOGPROBS = 20

_LONGEST_SHOWN = 40


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `Session.generate`.

    The answer, which two of them count, begins where the last prefill ended. It stays the same answer if you cut the
    generation into calls, or save and restore the session.
    """

    max_new_tokens: int
    """Stop after this many tokens. 256 by default."""
    temperature: float
    """Sampling temperature. 0, the default, always picks the most likely token."""
    top_k: int
    """Sample only from the k most likely tokens. 0 means all."""
    top_p: float
    """Sample only from the most likely tokens that together have this probability. 1 means all."""
    repetition_penalty: float
    """Values above 1 make tokens of the context less likely. 0.01 to 100."""
    min_p: float
    """Sample only from tokens that are at least this times as probable as the likeliest. 0 means all."""
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    """Added to the logits of these token ids. -100 to 100."""
    frequency_penalty: float
    """Taken from the logit of a token for each time it is in the answer, as in OpenAI's interface. -2 to 2."""
    presence_penalty: float
    """Taken from the logit of a token that is in the answer, as in OpenAI's interface. -2 to 2."""
    seed: int
    """Random seed for sampling. It gives the same text, however you cut, save or restore the generation."""
    stop_tokens: Sequence[int] | None
    """Tokens that end the text. By default those that the configs of model and tokenizer name."""
    stop_strings: str | Sequence[str] | None
    """Texts that end the text before them: one, or at most 64, each of 1 to 1,024 bytes in UTF-8."""
    logprobs: int | None
    """Find the log-probability of each token, and so many of the likeliest tokens with theirs, 0 to 20."""
    constraint: TokenConstraint | None
    """Which tokens may come: an object of your own, new for each answer."""
    speculation: int | None
    """Draft up to so many tokens, 1 to 64, from what followed the same tokens before, and check them in one step.

    The answer is the same, to rounding, and comes sooner where it repeats the context. None drafts none.
    """


def listed(options: GenerateOptions) -> GenerateOptions:
    """The options with lists in the place of iterators, so that each of several sessions can read them."""
    kept: dict[str, object] = {**options}
    for name in ("stop_tokens", "stop_strings"):
        if isinstance(kept.get(name), Iterator):
            kept[name] = [*cast("Iterator[object]", kept[name])]
    return cast("GenerateOptions", kept)


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """The value of an option that takes a whole number from `least` to `most`; NumPy's integers are taken too.

    Raises: SessionError naming the option, its value and the range.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most:
        return int(value)
    raise SessionError(f"{name} is {shown(value)}, expected a whole number from {least} to {most}")


def whole_numbers(name: str, values: object, least: int, most: int) -> list[int]:
    """As `whole_number`, of an option that takes a list of them."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise SessionError(f"{name} is {shown(values)}, expected a list of whole numbers")
    return [whole_number(f"a number of {name}", each, least, most) for each in values]


def optional_number(name: str, value: object, least: int, most: int) -> int | None:
    """As `whole_number`, of an option that may be None."""
    return None if value is None else whole_number(name, value, least, most)


def flag(name: str, value: object) -> bool:
    """The value of an option that takes True or False. Raises: SessionError naming the option and its value."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise SessionError(f"{name} is {shown(value)}, expected True or False")


def optional_text(name: str, value: object) -> str | None:
    """The value of an option that takes text or None. Raises: RequestError naming the option and its value."""
    if value is None or isinstance(value, str):
        return value
    raise RequestError(f"{name} is {shown(value)}, expected text")


def choice(name: str, value: object, names: Sequence[str]) -> str:
    """The value of an option that takes one of some words. Raises: RequestError naming the option and its value."""
    if isinstance(value, str) and value in names:
        return str(value)
    raise RequestError(f"{name} is {shown(value)}, expected {one_of(names)}")


def file_path(name: str, value: str | Path, error: type[InputError]) -> Path:
    """A path that the operating system takes, whether there is a file or not.

    Args: name: what the path is of, for the message.
    Raises: `error` naming it and its value, for example a path with a null character.
    """
    try:
        path = Path(value)
        if b"\0" not in os.fsencode(path):
            return path
    except (TypeError, UnicodeEncodeError):  # no path at all, or half a surrogate pair
        pass
    given = str(value) if isinstance(value, Path) else value
    raise error(f"{name} is {shown(given)}, expected a path, which has no null character and no half surrogate pair")


def optional_path(name: str, value: str | Path | None, error: type[InputError]) -> Path | None:
    """As `file_path`, of an option that may be None."""
    return None if value is None else file_path(name, value, error)


def bytes_limit(name: str, value: object, error: type[InputError]) -> int | None:
    """A number of bytes, given as such or as text such as `200G`. None for no limit.

    Raises: `error` naming the option and its value; RequestError for text that is no size.
    """
    if isinstance(value, str):
        return parse_bytes(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise error(f"{name} is {shown(value)}, expected a number of bytes, or text such as 200G")


def real_number(name: str, value: object) -> float:
    """The value of an option that takes a number, whose range the C++ runtime checks.

    Raises: SessionError naming the option and its value.
    """
    try:
        if isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass  # an integer larger than every fp64 number
    raise SessionError(f"{name} is {shown(value)}, expected a number")


def generate_options(options: GenerateOptions, default_stop_tokens: Iterable[int]) -> _native.GenerateOptions:
    """Options of a generation as the C++ runtime takes them, which checks them further.

    Raises: SessionError for a value that is no number of the kind that the option takes, and for an unknown option.
    """
    from . import _native
    from .token_constraint import token_constraint

    if unknown := sorted(options.keys() - GenerateOptions.__annotations__.keys()):
        raise SessionError(f"{unknown[0]} is no option: choose {', '.join(GenerateOptions.__annotations__)}")
    stop_tokens = options.get("stop_tokens")
    sampling = _native.SamplingOptions(
        temperature=real_number("temperature", options.get("temperature", 0.0)),
        top_k=whole_number("top_k", options.get("top_k", 0), 0, 2**63 - 1),
        top_p=real_number("top_p", options.get("top_p", 1.0)),
        repetition_penalty=real_number("repetition_penalty", options.get("repetition_penalty", 1.0)),
        seed=whole_number("seed", options.get("seed", 0), 0, 2**64 - 1),
        min_p=real_number("min_p", options.get("min_p", 0.0)),
        frequency_penalty=real_number("frequency_penalty", options.get("frequency_penalty", 0.0)),
        presence_penalty=real_number("presence_penalty", options.get("presence_penalty", 0.0)),
        logit_bias=_logit_bias(options.get("logit_bias")),
    )
    return _native.GenerateOptions(
        max_new_tokens=whole_number("max_new_tokens", options.get("max_new_tokens", 256), 0, 2**63 - 1),
        sampling=sampling,
        stop_tokens=list(default_stop_tokens) if stop_tokens is None else _token_ids(stop_tokens),
        logprobs=optional_number("logprobs", options.get("logprobs"), 0, MOST_LOGPROBS),
        constraint=token_constraint(options.get("constraint")),
        speculation=optional_number("speculation", options.get("speculation"), 1, MOST_DRAFT_TOKENS),
    )


def stop_strings(given: object) -> _native.StopStrings | None:
    """What looks for stop strings: one text, or a list of texts. None if there are none.

    Raises: SessionError for what is no text or no list of texts, for an empty or long string, and for too many.
    """
    from . import _native

    if given is None:
        return None
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise SessionError(f"stop_strings is {shown(given)}, expected a text or a list of texts")
    strings = [_stop_string(each) for each in ((given,) if isinstance(given, str) else given)]
    return _native.StopStrings(strings) if strings else None


def _stop_string(value: object) -> str:
    try:
        if isinstance(value, str) and value.encode():
            return value
    except UnicodeEncodeError:
        pass  # half a surrogate pair, which no text has
    raise SessionError(f"a string of stop_strings is {shown(value)}, expected a text that is not empty")


def _logit_bias(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SessionError(f"logit_bias is {shown(value)}, expected a mapping of token ids to numbers")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        # JSON, in which OpenAI's interface takes them, has texts as keys.
        is_text = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < _LONGEST_SHOWN
        token = whole_number("an id of logit_bias", int(key) if is_text else key, 0, MOST_TOKENS)
        if token in biases:
            raise SessionError(f"logit_bias has token {token} twice, expected each token once")
        biases[token] = real_number(f"logit_bias of token {token}", bias)
    return biases


def _token_ids(value: object) -> list[int]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise SessionError(f"stop_tokens is {shown(value)}, expected a list of token ids")
    return [whole_number("an id of stop_tokens", each, 0, MOST_TOKENS) for each in value]


def shown(value: object) -> str:
    """A value in a message. Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = str(value) if isinstance(value, np.generic) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
