"""Tokens and their numbers, as OpenAI's protocol describes them."""

from __future__ import annotations

from typing import Any

from ..answers import Usage
from ..events import Progress, Token
from ..service import Service

_NEVER = -9999.0


def described_usage(usage: Usage) -> dict[str, Any]:
    """`usage` of an answer."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def described_progress(progress: Progress) -> dict[str, Any]:
    """`prompt_progress`, as llama.cpp's server sends it."""
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.seconds * 1000),
    }


def described_token(token: Token, service: Service) -> dict[str, Any]:
    """A token with its log-probability, and the likeliest tokens in its place."""
    assert token.logprobs is not None
    top = [_described(service.token_text(each), logprob) for each, logprob in token.logprobs.top]
    return {**_described(token.text, token.logprobs.logprob), "top_logprobs": top}


def finite(logprob: float) -> float:
    """A log-probability as JSON can tell it: that of what cannot come is -9999, as OpenAI has it."""
    return max(logprob, _NEVER)


def _described(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}
