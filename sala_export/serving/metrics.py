"""What `/metrics` tells, in Prometheus' text format. All names begin with `sala_`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sala_requests",
            "Requests by endpoint and status of the answer.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            "sala_prompt_tokens",
            "Tokens of prompts, by whether they were read or kept from before.",
            ["source"],
            registry=self._registry,
        )
        self._generated_tokens = Counter("sala_generated_tokens", "Tokens of answers.", registry=self._registry)
        self._first_token = Histogram(
            "sala_time_to_first_token_seconds",
            "Seconds up to the first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._between_tokens = Histogram(
            "sala_time_between_tokens_seconds",
            "Seconds from token to token.",
            buckets=_BETWEEN_TOKENS,
            registry=self._registry,
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a gauge, which is asked for its value when somebody reads the metrics."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """All metrics as they are now, for a program that shows them in its own way."""
        return self._registry.collect()

    def request(self, endpoint: str, status: int) -> None:
        """Count an answer. Args: endpoint: a path of this server, never one that a client made up."""
        self._requests.labels(endpoint, str(status)).inc()

    def prompt(self, tokens: int, cached: int) -> None:
        """Count a prompt. Args: cached: tokens of it that need not be read."""
        self._prompt_tokens.labels("kept").inc(cached)
        self._prompt_tokens.labels("read").inc(tokens - cached)

    def answer(self, start: float) -> AnswerClock:
        """Measure an answer. Args: start: when its request came, by `time.monotonic`."""
        return AnswerClock(self._first_token, self._between_tokens, self._generated_tokens, start)


class AnswerClock:
    """The times of one answer's tokens."""

    def __init__(self, first: Histogram, between: Histogram, tokens: Counter, start: float) -> None:
        self._first = first
        self._between = between
        self._tokens = tokens
        self._last = start
        self._has_begun = False

    def tokens(self, count: int) -> None:
        """Some tokens have come."""
        if not count:
            return
        now = time.monotonic()
        self._tokens.inc(count)
        if not self._has_begun:
            self._has_begun = True
            self._first.observe(now - self._last)
        else:
            self._between.observe((now - self._last) / count)
        self._last = now
