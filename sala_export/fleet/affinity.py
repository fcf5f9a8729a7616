"""Which requests belong together, so that one replica answers all of them and has read their beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers

SESSION_HEADERS = ("x-session-id", "x-conversation-id", "x-correlation-id")
"""Headers that name a conversation. The first is Ray Serve's own, the last is what load generators send."""
_BEGINNING = 4096
"""Characters of a system message, and of the first message behind it, that tell conversations apart."""
_PROMPTS = ("messages", "input", "prompt")


def conversation_key(headers: Headers, body: bytes) -> str:
    """A text that all requests of a conversation have in common. Empty if nothing tells.

    It is the first of these that a request has: a header that names its conversation, the body's `prompt_cache_key`,
    the named context that it asks about, the beginning of its text. So conversations with clients that send no name
    stay together, too: clients send a conversation whole each time, and its beginning never changes.
    """
    named = next((headers[name] for name in SESSION_HEADERS if headers.get(name)), None)
    if named is not None:
        return _hashed("header", named)
    try:
        fields = json.loads(body) if body else None
    except ValueError:  # the replica says what is wrong with it
        return ""
    if not isinstance(fields, dict):
        return ""
    for name in ("prompt_cache_key", "context"):
        if isinstance(fields.get(name), str):
            return _hashed(name, fields[name])
    beginning = [*_beginning(fields)]
    return _hashed("text", *beginning) if beginning else ""


def context_key(name: str) -> str:
    """The key of requests that ask about a named context, and of the one that makes it."""
    return _hashed("context", name)


def _beginning(fields: dict[str, Any]) -> Iterator[str]:
    """The system message and the first message of the user, as far as they are looked at."""
    for name in ("system", "instructions"):
        if fields.get(name):
            yield _text(fields[name])
    prompt = next((fields[name] for name in _PROMPTS if fields.get(name)), None)
    if not isinstance(prompt, list) or not all(isinstance(each, dict) for each in prompt):
        if prompt is not None:
            yield _text(prompt)
        return
    for message in prompt:
        yield _text(message.get("content"))
        if message.get("role") == "user":
            return


def _text(content: Any) -> str:
    """The first characters of a content, which may be a text, or parts of one."""
    whole = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return whole[:_BEGINNING]


def _hashed(*parts: str) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()
