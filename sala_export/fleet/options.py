"""What somebody who starts a fleet decides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import RequestError
from ..serving.settings import LOOPBACK_HOSTS, MAX_SESSIONS, Keys, Settings
from ..specs import parse_bytes, parse_tokens

_REPLICAS = re.compile(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?")


def _read(parse: Callable[[str], Any]) -> BeforeValidator:
    """Read a value from its text. What a YAML file gives as a number or a list stays as it is."""

    def read(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except RequestError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(read)


def _replicas(value: Any) -> Any:
    """`4`, or `1-8` for as many as the queue needs."""
    match = _REPLICAS.fullmatch(str(value))
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if most < least:
        raise ValueError(f"{value!r} is no number of replicas: write 4, or 1-8 for as many as the queue needs")
    return least, most


_Tokens = Annotated[int, Field(gt=0), _read(parse_tokens)]
_Bytes = Annotated[int, Field(gt=0), _read(parse_bytes)]
_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Names = Annotated[tuple[_Name, ...], _read(lambda text: tuple(text.split(",")))]
_Count = Annotated[int, Field(ge=1)]


class FleetOptions(BaseModel):
    """Arguments of `sala_export.fleet.ray:app`. Those that `sala-export serve` has too mean the same here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    """A bundle directory that every machine of the cluster has at this path."""
    weights: str | None = None
    runtime: str = "auto"
    cpu_math: str | None = None
    """As these three are of `sala_export.load`."""

    replicas: Annotated[tuple[int, int], BeforeValidator(_replicas)] = (1, 1)
    """Fewest and most processes with the model. They follow the queue if the two differ."""
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1
    """GPUs of each replica. 0 answers on the CPU."""
    num_cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    """CPU cores of each replica. On the CPU it computes with as many threads."""
    fronts: _Count = 1
    """Processes that take requests and pass them on."""
    queue: Annotated[int, Field(ge=0)] = MAX_SESSIONS
    """Requests that wait for the replica of their conversation, before another replica answers them."""
    tries: _Count = 3
    """Replicas that may die of one request before it is given up."""
    drain_seconds: Annotated[int, Field(ge=0)] = 30
    """Time that answers get to end when a replica is told to stop."""

    state_store: str | None = None
    """A folder that all replicas share. It keeps each conversation when its turn ends."""
    state_store_bytes: _Bytes | None = None

    model_name: _Names = ()
    api_key_file: str | None = None
    allow_host: _Names = ()
    cors_origin: _Names = ()
    max_sessions: _Count = MAX_SESSIONS
    max_waiting: _Count = 256
    """Requests that wait in all. One more gets status 429."""
    max_wait: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_context: _Tokens | None = None
    max_contexts: Annotated[int, Field(ge=0)] = 16
    max_cache: _Bytes | None = None
    max_tokens: _Tokens = 4096
    max_body: _Bytes = 32 << 20
    """Bytes of a body. Here also of a text for `/v1/contexts`: it is held until a replica has read it."""
    speculation: Annotated[int, Field(ge=1)] | None = None
    chat_template: str | None = None
    tool_parser: str = "auto"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> FleetOptions:
        """The options as `serve run APP key=value` or a YAML file gives them.

        Raises: RequestError naming the one that is missing, unknown or wrong, and for a pair that contradicts itself.
        """
        known = [*cls.model_fields]
        for name in given:
            if name not in known:
                (near,) = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
                raise RequestError(
                    f"the fleet does not know {name}: did you mean {near}? It takes {', '.join(sorted(known))}"
                )
        try:
            options = cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RequestError(f"the fleet's {where}: {first['msg'].removeprefix('Value error, ')}") from None
        if options.state_store_bytes is not None and options.state_store is None:
            raise RequestError("state_store_bytes is the limit of a store: give state_store=DIR, too")
        return options

    @property
    def most_ongoing(self) -> int:
        """Requests that one replica has at once, waiting ones included."""
        return self.max_sessions + self.queue

    def settings(self) -> Settings:
        """The options of the server in each replica. Raises: RequestError for a file of keys that cannot be used."""
        keys = Keys(()) if self.api_key_file is None else Keys.read(Path(self.api_key_file))
        hosts = self.allow_host if keys else (*LOOPBACK_HOSTS, *self.allow_host)
        return Settings(
            model_names=self.model_name or (Path(self.bundle).resolve().name.removesuffix(".sala"),),
            keys=keys,
            hosts=tuple(name.lower() for name in hosts),
            cors_origins=self.cors_origin,
            max_sessions=self.max_sessions,
            max_waiting=self.max_waiting,
            max_wait=self.max_wait,
            max_context=self.max_context,
            max_contexts=self.max_contexts,
            max_cache_bytes=self.max_cache,
            waits_for_store=self.state_store is not None,
            speculation=self.speculation,
            default_max_tokens=self.max_tokens,
            max_body_bytes=self.max_body,
            tool_parser=self.tool_parser,
            chat_template=self.chat_template,
        )
