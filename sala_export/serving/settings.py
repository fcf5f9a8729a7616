"""What somebody who starts a server decides."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from ..errors import RequestError
from ..specs import parse_tokens

LEAST_KEY_CHARACTERS = 16
MAX_SESSIONS = 8
"""Requests that are answered at once by default, if the engine serves so many."""
_LIMITS = {"contexts": "8", "context-tokens": "4M"}
"""What may stand behind a key, each with an example."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Options of a server. The command line gives each its name."""

    model_names: tuple[str, ...]
    """Names by which clients may ask for the model. The first is the one that answers tell."""
    keys: Keys = field(default_factory=lambda: Keys(()))
    max_sessions: int | None = None
    """Requests that are answered at once. None: 8, or as many as a step of the engine serves."""
    max_waiting: int = 256
    max_wait: float | None = None
    """Seconds that a request may wait for its turn."""
    max_context: int | None = None
    """Tokens of a prompt with its answer. None: what the model was made for."""
    max_contexts: int = 16
    """Contexts that stay in memory when they have been answered."""
    max_cache_bytes: int | None = None
    """Bytes that the caches of all sessions may take. None: what the GPU has."""
    waits_for_store: bool = False
    """An answer ends when its context is in the state store, if there is one."""
    speculation: int | None = None
    """Tokens to draft for a step of each answer. None: no drafts."""
    default_max_tokens: int = 4096
    """Tokens of an answer for which the client sets no limit."""
    max_body_bytes: int = 32 << 20
    max_connections: int = 512
    max_silence: float = 30.0
    """Seconds that a client may take for the next part of its request, or of its answer."""
    ping_seconds: float = 10.0
    """How often a stream sends a comment while there is nothing else, so that proxies keep it open."""
    tool_parser: str = "auto"
    chat_template: str | None = None
    """The name of the template. None: the default one."""
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """Names by which the server may be called. Empty: any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """What a key may take. None: no limit."""

    contexts: int | None = None
    """Named contexts."""
    context_tokens: int | None = None
    """Tokens of all of them together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who has sent a request."""

    owner: str = ""
    """SHA-256 of the key, in hexadecimal digits. Empty if the server has no keys: all are one owner then."""
    quota: Quota = field(default_factory=Quota)


class Keys:
    """Keys of clients. Only their hashes are held."""

    def __init__(self, keys: Sequence[str], quotas: Mapping[str, Quota] = MappingProxyType({})) -> None:
        """Args: quotas: of those keys that have one."""
        owners = {key: sha256(key.encode()) for key in keys}
        self._callers = [
            (owner.digest(), Caller(owner=owner.hexdigest(), quota=quotas.get(key, Quota())))
            for key, owner in owners.items()
        ]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file with a key on each line, which may have limits behind it.

        For example, `KEY contexts=8 context-tokens=4M`. Lines that begin with `#` are comments.
        Raises: RequestError for a file that cannot be read, that holds no key, one that can be guessed or is there
            twice, or a limit that there is not.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise RequestError(f"--api-key-file {path}: {reason}") from None
        quotas: dict[str, Quota] = {}
        for place, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            where = f"--api-key-file {path}, line {place}"
            key, *limits = line.split()
            if len(key) < LEAST_KEY_CHARACTERS or not key.isascii():
                raise RequestError(
                    f"{where}: a key has at least {LEAST_KEY_CHARACTERS} characters, all of them ASCII and none a "
                    "space: make one with `openssl rand -hex 32`"
                )
            if key in quotas:
                raise RequestError(f"{where} has a key that is in the file already: leave one of them out")
            quotas[key] = _quota(limits, where)
        if not quotas:
            raise RequestError(f"--api-key-file {path} holds no key: write one on a line of its own")
        return cls([*quotas], quotas)

    def __bool__(self) -> bool:
        return bool(self._callers)

    def caller(self, key: str) -> Caller | None:
        """Who has this key. None if nobody has. It takes the same time for every key."""
        digest = sha256(key.encode()).digest()
        matches = [hmac.compare_digest(digest, each) for each, _ in self._callers]
        return self._callers[matches.index(True)][1] if any(matches) else None


def _quota(limits: Sequence[str], where: str) -> Quota:
    """The limits behind a key. Raises: RequestError for one that there is not, or that is no number."""
    given: dict[str, int] = {}
    for limit in limits:
        name, sign, value = limit.partition("=")
        if not sign or name not in _LIMITS or name in given:
            known = " and ".join(f"{each}={example}" for each, example in _LIMITS.items())
            shown = repr(limit) if sign else "what stands behind the key"  # which may be another key
            raise RequestError(f"{where}: {shown} is no limit: behind a key {known} may stand, each once")
        given[name] = _number(value, f"{where}, {name}")
    return Quota(contexts=given.get("contexts"), context_tokens=given.get("context-tokens"))


def _number(text: str, where: str) -> int:
    """A number of at least 0, also as 64K or 1M. Raises: RequestError naming where it stands."""
    try:
        return 0 if text == "0" else parse_tokens(text)
    except RequestError:
        raise RequestError(f"{where}: {text!r} is no number: write digits, or digits with K or M, as in 4M") from None


def is_loopback(host: str) -> bool:
    """True if only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names by which this machine calls itself. A page of a stranger that resolves its own name to it has another."""
