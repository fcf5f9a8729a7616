"""Requests of clients, read from tensors and parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from ...errors import RequestError
from ...serving.errors import ApiError, most_exact
from ...serving.json_body import json_value
from ...serving.openai.messages import MOST_MESSAGES, Message
from ...serving.openai.parameters import Partial, SamplingParameters, TokenIds

_OTHER_NAMES = {"max_new_tokens": "max_tokens", "stop_words": "stop", "random_seed": "seed"}
_OF_THE_PROTOCOL = ("id", "sequence_id", "sequence_start", "sequence_end")
"""What Triton's endpoint `generate` hands on as parameters, as it does everything that is no input."""


class GenerateRequest(SamplingParameters, Partial):
    """What a client asks for."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "n": "send the request so often with other seeds: what requests have in common is read once",
        "bad_words": "give logit_bias in sampling_parameters",
        "beam_width": "tokens are drawn one by one",
    }

    text_input: str | None = None
    input_ids: TokenIds | None = Field(default=None, min_length=1)
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    exclude_input_in_output: bool = True
    timeout: int = Field(default=0, ge=0, description="Microseconds that the answer may take. 0: no limit.")

    @classmethod
    def of(cls, inputs: Mapping[str, Any], parameters: str) -> GenerateRequest:
        """Read a request. Args: inputs: values of tensors; parameters: of the request, a JSON object.

        Raises: ApiError or RequestError naming the first thing that is wrong.
        """
        fields: dict[str, Any] = {}
        given = dict(inputs)
        sampling = _object("sampling_parameters", given.pop("sampling_parameters", "{}"))
        others = {name: each for name, each in json.loads(parameters).items() if name not in _OF_THE_PROTOCOL}
        for source in (given, sampling, others):
            for name, value in source.items():
                field = _OTHER_NAMES.get(name, name)
                if field in fields:
                    raise RequestError(f"{name} is given twice: leave one of them out")
                fields[field] = value
        if "messages" in fields:
            fields["messages"] = _json("messages", fields["messages"])
        try:
            request = cls.model_validate(fields)
        except ValidationError as error:
            raise _of_validation(error) from None
        request._require_one_prompt()
        return request

    def _require_one_prompt(self) -> None:
        prompts = [name for name in ("text_input", "input_ids", "messages") if getattr(self, name) is not None]
        if len(prompts) > 1:
            raise RequestError(f"the request has {' and '.join(prompts)}: give one of them")
        if not self.exclude_input_in_output:
            raise RequestError("exclude_input_in_output is false, and answers come alone: put the prompt before them")


class SequenceFlags:
    """To which conversation a request belongs, and where in it."""

    def __init__(self, conversation: int | str, parameters: str, *, is_first: bool, is_last: bool) -> None:
        """Args: conversation: its id, 0 or empty for none. The endpoint `generate` has ids among the parameters."""
        given = json.loads(parameters)
        named = given.get("sequence_id", 0)
        if isinstance(named, bool) or not isinstance(named, (int, str)):
            raise RequestError("sequence_id is neither a whole number nor a text")
        self.conversation: int | str | None = conversation or named or None
        self.is_first = _flag(given, "sequence_start") or is_first
        self.is_last = _flag(given, "sequence_end") or is_last
        if self.conversation is None and (self.is_first or self.is_last):
            raise RequestError("a sequence begins or ends, and has no id: give sequence_id")


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} is neither true nor false")
    return value


def _json(name: str, text: Any) -> Any:
    try:
        return json_value(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise RequestError(f"{name} is no JSON text: {error}") from None


def _object(name: str, text: str) -> dict[str, Any]:
    value = _json(name, text)
    if not isinstance(value, dict):
        raise RequestError(f"{name} is no JSON object: write it as {{...}}")
    return value


def _of_validation(error: ValidationError) -> ApiError:
    first, path = most_exact(error.errors(include_url=False))
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name} is neither an input nor a parameter of this model")
    return ApiError(400, f"{name}: {first['msg']}")
