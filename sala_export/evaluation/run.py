"""Runs an evaluation: what fits, what is known already, and what is left to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration.shipped_text import documents
from ..checkpoint.config import SalaConfig
from ..errors import RequestError, RunError
from ..installation import VERSION
from ..loading import require_host_room
from ..progress import ProgressCallback
from ..runtime.model import Model
from ..runtime.text import Tokenizer
from ..specs import format_tokens
from .haystack import Frame, leading_ids
from .perplexity import EvaluationText, score_text
from .prompts import ReadText
from .results import Results, opened_results, write_summary
from .retrieval import HaystackReader, ItemKey
from .summary import ANSWER, Summary
from .tasks import PERPLEXITY, HaystackReading, TaskOptions, readings

_FIRST_LENGTH = 4096
"""The shortest length unless the user chooses. Each further one is twice as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedModel:
    """The model that is evaluated."""

    model: Model
    tokenizer: Tokenizer
    name: str
    config: SalaConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """The request for an evaluation."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...] | None
    """Lengths of contexts in tokens, that of the answer included. None takes 4K, 8K and so on, as far as they fit."""
    options: TaskOptions = field(default_factory=TaskOptions)
    max_new_tokens: int | None = None
    """Most tokens of an answer. None takes `ANSWER_TOKENS`."""
    frame: Frame = field(default_factory=Frame)
    text: ReadText | None = None
    """The text of perplexity. None takes the part of the shipped text that `quantize` does not read."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """Further options that decide the results, as plain JSON values: of the chat, and hashes of files."""

    def to_dict(self) -> dict[str, Any]:
        """What decides the results, as plain JSON values."""
        return {
            "tasks": list(self.tasks),
            "lengths": None if self.lengths is None else list(self.lengths),
            "depths": self.options.depths,
            "samples": self.options.samples,
            "seed": self.options.seed,
            "max_new_tokens": self.max_new_tokens,
            "text_sha256": None if self.text is None else self.text.sha256,
            **self.described,
        }


def run_evaluation(
    subject: EvaluatedModel, request: EvaluationRequest, folder: Path | None, on_progress: ProgressCallback
) -> Summary:
    """Evaluate a model. Items that the folder has already are not done again.

    Args: folder: gets `results.jsonl` as results come, and `summary.json` at the end. None writes nothing.
    Raises: RequestError for a length that does not fit, too few keys, or a folder with other results, before anything
        runs; RunError if a step fails.
    """
    model = subject.model
    asked = {
        "model": {
            "name": subject.name,
            "fingerprint": model.fingerprint,
            "precision": model.precision,
            "runtime": model.runtime,
        },
        "options": request.to_dict(),
        "versions": {"sala_export": VERSION},
    }
    work = _Work.plan(subject, request)
    with opened_results(folder, asked) as results:
        work.run(results, on_progress)
        summary = Summary.of(asked, results.records)
        if folder is not None:
            write_summary(folder, summary.to_dict())
    return summary


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """Everything that is to be done, checked."""

    subject: EvaluatedModel
    reader: HaystackReader
    texts: tuple[tuple[str, int, HaystackReading], ...]
    """Task, length and text, the shortest first."""
    scored: EvaluationText | None
    scored_lengths: tuple[int, ...]

    @classmethod
    def plan(cls, subject: EvaluatedModel, request: EvaluationRequest) -> _Work:
        """Raises: RequestError."""
        lengths = _lengths(subject, request.lengths)
        reader = HaystackReader(
            model=subject.model,
            tokenizer=subject.tokenizer,
            frame=request.frame,
            max_new_tokens=request.max_new_tokens,
        )
        texts = []
        for length in lengths:
            for task in request.tasks:
                if task != PERPLEXITY:
                    texts += [(task, length, reading) for reading in readings(task, length, request.options)]
        for task, length, reading in texts:
            reader.require_room(task, length, reading)
        scored = _text(subject.tokenizer, request.text) if PERPLEXITY in request.tasks else None
        scored_lengths = scored.lengths(lengths) if scored else ()
        return cls(
            subject=subject,
            reader=reader,
            texts=tuple(texts),
            scored=scored,
            scored_lengths=scored_lengths,
        )

    def run(self, results: Results, on_progress: ProgressCallback) -> None:
        """Do what the results lack."""
        known = {_key(record) for record in results.records if record["kind"] == ANSWER}
        for task, length, reading in self.texts:
            for outcome in self.reader.answers(task, length, reading, known, on_progress):
                results.add({"kind": ANSWER, **outcome.to_dict()})
        done = {record["length"] for record in results.records if record["kind"] == PERPLEXITY}
        for length in self.scored_lengths:
            if self.scored is not None and length not in done:
                session = self.subject.model.session(max_context=length, max_checkpoints=0)
                score = score_text(session, self.scored, length, self.subject.tokenizer, on_progress)
                results.add({"kind": PERPLEXITY, **score.to_dict()})


def _key(record: Mapping[str, Any]) -> ItemKey:
    return ItemKey(**{name: record[name] for name in ("task", "length", "depth", "sample")})


def _text(tokenizer: Tokenizer, read: ReadText | None) -> EvaluationText:
    leading = leading_ids(tokenizer, Frame())
    if read is not None:
        return EvaluationText.of(read.text, tokenizer, leading, "the text of --text")
    shipped = "\n\n".join(document.to_verify for document in documents())
    return EvaluationText.of(shipped, tokenizer, leading, "the text that ships with sala-export")


def _lengths(subject: EvaluatedModel, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The lengths to evaluate, each once, the shortest first. Raises: as `_require_fits`."""
    if wanted is not None:
        for length in wanted:
            _require_fits(subject, length)
        return tuple(sorted(set(wanted)))
    found = tuple(_lengths_that_fit(subject))
    if not found:
        _require_fits(subject, _FIRST_LENGTH)
    return found


def _lengths_that_fit(subject: EvaluatedModel) -> Iterator[int]:
    length = _FIRST_LENGTH
    while True:
        try:
            _require_fits(subject, length)
        except (RequestError, RunError):
            return
        yield length
        length *= 2


def _require_fits(subject: EvaluatedModel, length: int) -> None:
    """Raises: RequestError, or RunError on a GPU, for a length that the model or the memory has no room for."""
    model = subject.model
    if length > model.default_max_context:
        raise RequestError(
            f"--lengths {format_tokens(length)}: the model serves contexts of up to "
            f"{format_tokens(model.default_max_context)} tokens, choose smaller --lengths"
        )
    require_host_room(model, subject.config, "--lengths", length)
    if model.on_gpu:
        model.session(max_context=length, max_checkpoints=0).require_room(length)
