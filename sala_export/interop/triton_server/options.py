"""What `config.pbtxt` of a repository says to the model: its parameters, which you may change there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import ConfigError

CONFIG_FILE = "config.pbtxt"
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


class ModelParameters(BaseModel):
    """Parameters of a model in a repository. All are texts there."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bundle: str
    """Name of the bundle in the version folder, or an absolute path."""
    runtime: str = "auto"
    cpu_math: str | None = None
    max_context: _Positive | None = None
    max_tokens: _Positive = 4096
    """Tokens of an answer for which the client sets no limit."""
    max_sessions: _Positive | None = None
    max_waiting: _Count = 256
    max_wait: Annotated[float, Field(ge=0)] | None = None
    max_contexts: _Count = 16
    max_cache: _Positive | None = None
    """Bytes of the caches of all contexts."""
    max_idle: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after whose end a conversation that nobody continues ends."""
    speculation: _Positive | None = None
    chat_template: str | None = None
    state_store: str | None = None
    state_store_bytes: _Positive | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelParameters:
        """Read the parameters of a model configuration, as the server gives it. Raises: ConfigError for a wrong one.

        Those whose names have no small letter, such as `EXECUTION_ENV_PATH`, are the Python backend's own.
        """
        given = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        try:
            return cls.model_validate({name: value for name, value in given.items() if not name.isupper()})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            what = "there is no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
            raise ConfigError(f"{CONFIG_FILE}, parameter {name}: {what}") from None

    def texts(self) -> dict[str, str]:
        """The parameters that are not as by default, as texts."""
        return {name: str(value) for name, value in self.model_dump(exclude_defaults=True).items()}


def keeps_conversations(config: Mapping[str, Any]) -> bool:
    """True if every turn of a conversation comes to the instance that has its state.

    That is so if there is one instance, or if the server leads the turns.
    Args: config: a model configuration, as the server gives it.
    """
    instances = sum(group["count"] * max(1, len(group["gpus"])) for group in config["instance_group"])
    return instances == 1 or "sequence_batching" in config
