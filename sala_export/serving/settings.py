"""What somebody who starts a server decides."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from ..errors import RequestError

LEAST_KEY_CHARACTERS = 16
DEFAULT_PORT = 8000


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Options of a server. The command line gives each its name."""

    model_names: tuple[str, ...]
    """By which clients may ask for the model. The first is the one that answers tell."""
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
    """Of all sessions. None: what the GPU has."""
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


class Keys:
    """Keys of clients. Only their hashes are held."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file with a key on each line. Lines that begin with `#` are comments.

        Raises: RequestError for a file that cannot be read, that holds no key, or one that can be guessed.
        """
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise RequestError(f"--api-key-file {path}: {reason}") from None
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise RequestError(f"--api-key-file {path} holds no key: write one on a line of its own")
        for place, line in enumerate(lines, 1):
            if line in keys and (len(line) < LEAST_KEY_CHARACTERS or not line.isascii() or " " in line):
                raise RequestError(
                    f"--api-key-file {path}, line {place}: a key has at least {LEAST_KEY_CHARACTERS} characters, all "
                    "of them ASCII and none a space: make one with `openssl rand -hex 32`"
                )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def have(self, key: str) -> bool:
        """Whether a client has one of the keys. It takes the same time for every key."""
        digest = sha256(key.encode()).digest()
        matches = [hmac.compare_digest(digest, each) for each in self._hashes]
        return True in matches


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names by which this machine calls itself. A page of a stranger that resolves its own name to it has another."""
