"""What the results of an evaluation say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..machine import peak_host_bytes
from .tasks import PERPLEXITY

ANSWER = "answer"
"""Kind of the results of retrieval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """All questions of a task at one length and depth."""

    task: str
    length: int
    depth: float | None
    """None for tasks that ask for more than one place."""
    samples: int
    score: float
    """Mean of the questions, from 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The summary of an evaluation."""

    asked: Mapping[str, Any]
    """Model, options and versions, as plain JSON values."""
    cells: tuple[Cell, ...]
    """In the order of tasks as they were asked for, lengths and depths."""
    perplexity: tuple[Mapping[str, Any], ...]
    """Results of perplexity as they were written, the shortest first."""
    peak_host_bytes: int
    """Peak resident memory of the process that made the summary, in bytes."""

    @classmethod
    def of(cls, asked: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Summary:
        """Sum up records of results."""
        scores: dict[tuple[str, int, float | None], list[float]] = defaultdict(list)
        for record in records:
            if record["kind"] == ANSWER:
                scores[record["task"], record["length"], record["depth"]].append(record["score"])
        tasks = asked["options"]["tasks"]
        ordered = sorted(scores.items(), key=lambda each: (tasks.index(each[0][0]), each[0][1], each[0][2] or 0.0))
        cells = [
            Cell(task=task, length=length, depth=depth, samples=len(found), score=sum(found) / len(found))
            for (task, length, depth), found in ordered
        ]
        scored = [{**record} for record in records if record["kind"] == PERPLEXITY]
        return cls(
            asked=asked,
            cells=tuple(cells),
            perplexity=tuple(sorted(scored, key=lambda record: int(record["length"]))),
            peak_host_bytes=peak_host_bytes(),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Retrieval tasks that have results."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    def lengths(self, task: str) -> tuple[int, ...]:
        """Lengths of a task."""
        return tuple(dict.fromkeys(cell.length for cell in self.cells if cell.task == task))

    def score(self, task: str, length: int) -> float:
        """Mean over all questions of a task at a length."""
        return mean(cell for cell in self.cells if (cell.task, cell.length) == (task, length))

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {
            **self.asked,
            "retrieval": [asdict(cell) for cell in self.cells],
            "by_length": [
                {"task": task, "length": length, "score": self.score(task, length)}
                for task in self.tasks
                for length in self.lengths(task)
            ],
            "perplexity": [{name: value for name, value in each.items() if name != "kind"} for each in self.perplexity],
            "peak_host_bytes": self.peak_host_bytes,
        }


def mean(cells: Iterable[Cell]) -> float:
    """Mean score of all questions of the cells."""
    found = [*cells]
    return sum(cell.score * cell.samples for cell in found) / sum(cell.samples for cell in found)
