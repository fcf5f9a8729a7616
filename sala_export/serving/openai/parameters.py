"""Parameters that requests of several endpoints share."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...runtime.options import GenerateOptions
from ..errors import unsupported

Token = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]

MOST_CHOICES = 128


class Refusing(BaseModel):
    """A request that names what it does not know: nothing that a client asks for is ignored."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Refusing):
    include_usage: bool = Field(default=False, description="Send a last chunk with the usage of tokens.")
    include_obfuscation: bool = Field(default=False, description="Accepted and without effect.")


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
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=64)] | None = None
    stop_token_ids: list[Token] | None = Field(
        default=None, max_length=1024, description="Tokens that end the answer, besides those of the model."
    )
    ignore_eos: bool = Field(default=False, description="Let the model's own stop tokens not end the answer.")
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="Answers to the same prompt.")
    priority: int = Field(default=0, ge=-1000, le=1000, description="Requests of a larger number begin first.")

    def sampling(self, model_stop_tokens: Sequence[int], *, choice: int, seed: int) -> GenerateOptions:
        """The options of one choice. Args: seed: as `chosen_seed` gave it for the request."""
        options: GenerateOptions = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": 1.0 if self.repetition_penalty is None else self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "seed": (seed + choice) % 2**64,
            "stop_tokens": [*(() if self.ignore_eos else model_stop_tokens), *(self.stop_token_ids or ())],
        }
        if self.logit_bias:
            options["logit_bias"] = self.logit_bias
        return options

    def chosen_seed(self) -> int:
        """The seed of the request, or one of chance."""
        return secrets.randbits(63) if self.seed is None else self.seed % 2**64

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
    metadata: dict[str, str] | None = Field(default=None, description="Accepted and without effect.")
    safety_identifier: str | None = Field(default=None, max_length=1024, description="Accepted and without effect.")
    prompt_cache_key: str | None = Field(
        default=None, max_length=1024, description="Accepted and without effect: beginnings of prompts are found."
    )
    service_tier: Literal["auto", "default"] | None = None
