"""Which requests belong together, so that one replica answers all of them and has read their beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers

from ..serving.errors import ApiError
from ..serving.json_body import json_value

SESSION_HEADERS = ("x-session-id", "x-conversation-id", "x-correlation-id")
"""Headers that name a conversation. The first is Ray Serve's own, the last is what load generators send."""
_BEGINNING = 4096
"""Characters of a system message, and of the first message behind it, that tell conversations apart."""
_PROMPTS = ("messages", "input", "prompt")
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def conversation_key(headers: Headers, body: bytes) -> str:
    """A text that all requests of a conversation have in common. Empty if nothing tells.

    It is the first of these that a request has: the named context that it asks about, a header that names its
    conversation, the body's `prompt_cache_key`, the beginning of its text. So conversations with clients that send no
    name stay together, too: clients send a conversation whole each time, and its beginning never changes.
    """
    fields = _fields(body)
    if isinstance(fields.get("context"), str):
        return context_key(fields["context"])
    named = next((headers[name] for name in SESSION_HEADERS if headers.get(name)), None)
    if named is not None:
        return _hashed("header", named)
    if isinstance(fields.get("prompt_cache_key"), str):
        return _hashed("prompt_cache_key", fields["prompt_cache_key"])
    beginning = [*_beginning(fields)]
    return _hashed("text", *beginning) if beginning else ""


def context_key(name: str) -> str:
    """The key of requests that ask about a named context, and of the one that makes it."""
    return _hashed("context", name)


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of a body. It has none if it is wrong: the replica says how."""
    try:
        fields = json_value(body) if body else None
    except (json.JSONDecodeError, ApiError):
        return {}
    return fields if isinstance(fields, dict) else {}


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
    if isinstance(content, str):
        return content[:_BEGINNING]
    beginning = ""
    for piece in _ENCODER.iterencode(content):  # piece by piece: a prompt may have a million token ids
        beginning += piece
        if len(beginning) >= _BEGINNING:
            break
    return beginning[:_BEGINNING]


def _hashed(*parts: str) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()
