"""Parameters that requests of several endpoints share."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from ...runtime.options import GenerateOptions
from ..errors import invalid, unsupported

Token = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]

MOST_CHOICES = 128
MOST_FIELDS = 1024
"""Names in an object whose names the client chooses."""
MOST_IDS = 1 << 22
"""Token ids in one list."""
_MOST_UNKNOWN = 64
"""Unknown parameters that are looked at. It is more than any endpoint has of unsupported ones."""
_END_OF_IDS = 2**31


def _checked_length(value: Any) -> Any:
    """Look at the length of an object first. A validator would look at all values, and collect the wrong ones."""
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        raise PydanticCustomError("too_long", "Input should have at most {most} fields", {"most": MOST_FIELDS})
    return value


_SHORT = BeforeValidator(_checked_length)


def checked_ids(value: Any) -> list[int]:
    """A list of token ids, as it is. A validator of lists would collect every wrong item of millions.

    Raises: PydanticCustomError for the first item that is no id.
    """
    if not isinstance(value, list) or len(value) > MOST_IDS:
        raise PydanticCustomError("token_ids", "Input should be a list of at most {most} token ids", {"most": MOST_IDS})
    if value and not (set(map(type, value)) == {int} and min(value) >= 0 and max(value) < _END_OF_IDS):
        wrong = next(at for at, each in enumerate(value) if type(each) is not int or not 0 <= each < _END_OF_IDS)
        raise PydanticCustomError(
            "token_id",
            "item {place} is no token id: ids are whole numbers from 0 to {last}",
            {"place": wrong, "last": _END_OF_IDS - 1},
        )
    return value


IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": _END_OF_IDS - 1},
    "maxItems": MOST_IDS,
}
"""How OpenAPI describes a `TokenIds`."""
TokenIds = Annotated[list[int], PlainValidator(checked_ids), WithJsonSchema(IDS_SCHEMA)]


def _fail_fast(schema: Any) -> None:
    """Let every list of a schema end at its first wrong item."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = schema.values()
    elif not isinstance(schema, (list, tuple)):
        return
    for each in schema:
        _fail_fast(each)


class Refusing(BaseModel):
    """A request that names what it does not know: nothing that a client asks for is ignored.

    A wrong list is told by its first wrong item, so that a request costs no more time the more faults it has.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def leave_out_most_unknown(cls, fields: Any) -> Any:
        """Drop unknown parameters but the first ones, for which the request is refused."""
        if not isinstance(fields, dict) or len(fields) <= len(cls.model_fields) + _MOST_UNKNOWN:
            return fields
        known = {field.alias or name for name, field in cls.model_fields.items()}
        kept = {*known, *islice((name for name in fields if name not in known), _MOST_UNKNOWN)}
        return {name: value for name, value in fields.items() if name in kept}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


class StreamOptions(Refusing):
    include_usage: bool = Field(default=False, description="Send a last chunk with the usage of tokens.")
    include_obfuscation: bool = Field(default=False, description="Accepted and without effect.")


class Streaming(Refusing):
    """An answer comes in one piece or as a stream, which may tell more."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    return_progress: bool = Field(
        default=False, description="In a stream, tell how much of the prompt has been read (prompt_progress)."
    )

    def require_stream(self) -> None:
        """Raises: ApiError if there are options of a stream and no stream."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "stream_options is given without stream: set stream to true")

    @property
    def includes_usage(self) -> bool:
        """True if a stream ends with the usage of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class SamplingParameters(Refusing):
    """How tokens are chosen, and when the answer ends."""

    temperature: float | None = Field(default=None, ge=0, le=100, description="0 always picks the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**63, description="0 and -1 keep all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64, description="Random seed for sampling.")
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, _SHORT] = Field(
        default=None, max_length=MOST_FIELDS
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=64)] | None = None
    stop_token_ids: list[Token] | None = Field(
        default=None, max_length=1024, description="Tokens that end the answer, besides those of the model."
    )
    ignore_eos: bool = Field(default=False, description="Let the model's own stop tokens not end the answer.")
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="Answers to the same prompt.")
    priority: int = Field(default=0, ge=-1000, le=1000, description="Requests of a larger number begin first.")

    def options(
        self, model_stop_tokens: Sequence[int], *, choices: int, max_new_tokens: int, logprobs: int | None
    ) -> list[GenerateOptions]:
        """The options of each choice. They differ in their seeds.

        Args: logprobs: as in `GenerateOptions`.
        """
        common: GenerateOptions = {
            "max_new_tokens": max_new_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": 1.0 if self.repetition_penalty is None else self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "logit_bias": self.logit_bias,
            "stop_tokens": [*(() if self.ignore_eos else model_stop_tokens), *(self.stop_token_ids or ())],
            "logprobs": logprobs,
        }
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return [{**common, "seed": (seed + choice) % 2**64} for choice in range(choices)]

    @property
    def stop_strings(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class Partial(Refusing):
    """Parameters of a protocol that has more of them than this server."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {}
    """Parameters that the protocol has and this server has not, with the reason."""

    @model_validator(mode="before")
    @classmethod
    def refuse_unsupported(cls, fields: Any) -> Any:
        """Drop what is null. Raises: ApiError naming a parameter that is not supported."""
        if not isinstance(fields, dict):
            return fields
        for name, reason in cls.UNSUPPORTED.items():
            if fields.get(name) not in (None, False, []):
                raise unsupported(name, reason)
        return {name: value for name, value in fields.items() if name not in cls.UNSUPPORTED}


class Accepted(Partial):
    """What clients send that changes nothing here, and what they may send only as it stands here."""

    user: str | None = Field(default=None, max_length=1024, description="Accepted and without effect.")
    metadata: Annotated[dict[str, str] | None, _SHORT] = Field(
        default=None, max_length=MOST_FIELDS, description="Accepted and without effect."
    )
    safety_identifier: str | None = Field(default=None, max_length=1024, description="Accepted and without effect.")
    prompt_cache_key: str | None = Field(
        default=None, max_length=1024, description="Accepted and without effect: beginnings of prompts are found."
    )
    service_tier: Literal["auto", "default"] | None = None
