"""The figures of a run, one class for each kind, read field by field (`benchmarks/figures.py` lists the fields)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.figures import WAYS
from benchmarks.kernel_cases import LIGHTNING, SPARSE
from benchmarks.kernel_measure import Row

T = TypeVar("T")

_OPERATORS = {"Lightning": LIGHTNING, "InfLLM-v2": SPARSE}
"""By the first words of the name of a call."""


class RecordError(Exception):
    """Figures, or what is said about them, that cannot go into a document: in one line."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a figure, each read with its type. Raises: RecordError with file, line and field."""

    place: str
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str) -> float:
        """A finite number that is not negative."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self._wrong(name, "a number that is not negative")
        return float(value)

    def positive(self, name: str) -> float:
        """A finite number above 0, such as a time that something took."""
        value = self.number(name)
        if value == 0:
            raise self._wrong(name, "more than 0")
        return value

    def count(self, name: str) -> int:
        value = self.number(name)
        if value != int(value):
            raise self._wrong(name, "a whole number")
        return int(value)

    def optional(self, name: str, read: Callable[[str], T]) -> T | None:
        """What `read` gives of a field; None if it is null or left out."""
        return None if self.values.get(name) is None else read(name)

    def choice(self, name: str, among: Sequence[str]) -> str:
        if (value := self.text(name)) not in among:
            raise self._wrong(name, f"one of {', '.join(among)}")
        return value

    def inner(self, name: str) -> Fields:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(f"{self.place}: {name}", value)

    def _wrong(self, name: str, wanted: str) -> RecordError:
        return RecordError(f"{self.place}: {name} is {self.values.get(name)!r:.60}: must be {wanted}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """A timed launch, operator or peer, and which code ran."""

    way: str
    row: Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A tensor of an operator beside its float64 reference."""

    way: str
    operator: str
    check: str
    dtype: str
    tensor: str
    """Empty if the check could not run."""
    error: float
    """Infinite if what came out was no number, or nothing came out."""
    limit: float
    passed: bool
    message: str
    """Why the check could not run, else empty."""

    @property
    def told(self) -> str:
        """What it found."""
        if not self.tensor:
            return f"{self.check}: could not run: {self.message}"
        return f"{self.check}, {self.tensor}: error {self.error:.3g} of at most {self.limit:.3g}"

    @property
    def of_limit(self) -> float:
        """1 is as far off as allowed."""
        if self.limit == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """Seconds: median, spread, and the floor of the GPU where it is known."""

    median: float
    spread: float
    floor: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstToken:
    """One context of `benchmarks.ttft`."""

    runtime: str
    precision: str
    layers: int
    context: int
    first: Runs
    token: Runs | None
    published: Mapping[str, float]
    """Seconds to the first token by GPU; only the published model has them."""
    device_bytes: int | None
    foretold_bytes: int | None
    host_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Passkey:
    """One prompt of `benchmarks.passkey`."""

    runtime: str
    length: int
    found: tuple[bool, ...]
    prefill_seconds: float
    question_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Chosen blocks of neighbouring tokens in one layer: of one token, and of all of them together; means."""

    model: str
    context: int
    layer: int
    neighbours: int
    chosen_blocks: float
    union_blocks: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A candidate tile, or constants, in a call."""

    kernel: str
    candidate: str
    case: str
    seconds: float
    spread: float
    registers: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counter:
    """A counter of ncu."""

    kernel: str
    metric: str
    value: str
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEnd:
    """How a step of the run ended."""

    name: str
    state: str
    seconds: float | None
    estimate_seconds: float | None
    message: str


def operator_of(call: str) -> str | None:
    """The operator that a call of `benchmarks/kernel_cases.py` is of, by its name; None for a name of no operator."""
    return next((operator for prefix, operator in _OPERATORS.items() if call.startswith(prefix)), None)


def read_timed(fields: Fields) -> Timed:
    row = Row(
        case=fields.text("case"),
        dtype=fields.text("dtype"),
        what=fields.text("what"),
        seconds=fields.positive("seconds"),
        spread=fields.number("spread"),
        rounds=fields.count("rounds"),
        floor_seconds=fields.optional("floor_seconds", fields.number),
        roofline_seconds=fields.optional("roofline_seconds", fields.number),
    )
    if operator_of(row.case) is None:
        raise RecordError(f"{fields.place}: case is {row.case!r:.60}: must begin with {' or '.join(_OPERATORS)}")
    return Timed(way=fields.choice("way", WAYS), row=row)


def read_gate(fields: Fields) -> Gate:
    error = fields.values.get("error")
    is_number = isinstance(error, int | float) and math.isfinite(error)
    has_run = fields.flag("passed") or fields.values.get("limit") is not None
    gate = Gate(
        way=fields.choice("way", WAYS),
        operator=fields.text("operator"),
        check=fields.text("check"),
        dtype=fields.text("dtype"),
        tensor=fields.text("tensor") if has_run else "",
        error=fields.number("error") if is_number else math.inf,
        limit=fields.number("limit") if has_run else 0.0,
        passed=fields.flag("passed"),
        message="" if has_run else fields.text("message"),
    )
    if gate.passed and not is_number:
        raise RecordError(f"{fields.place}: passed, though error is {error!r}")
    return gate


def read_first_token(fields: Fields) -> FirstToken:
    published = fields.inner("published_first_token_seconds")
    return FirstToken(
        runtime=fields.text("runtime"),
        precision=fields.text("precision"),
        layers=fields.count("layers"),
        context=fields.count("context"),
        first=_runs(fields.inner("first_token_seconds")),
        token=_runs(inner) if (inner := fields.optional("token_seconds", fields.inner)) else None,
        published={gpu: published.positive(gpu) for gpu in published.values},
        device_bytes=fields.optional("device_memory_bytes", fields.count),
        foretold_bytes=fields.optional("foretold_device_memory_bytes", fields.count),
        host_bytes=fields.optional("host_memory_bytes", fields.count),
    )


def _runs(fields: Fields) -> Runs:
    floor = fields.optional("floor", fields.positive)
    return Runs(median=fields.positive("median"), spread=fields.number("spread"), floor=floor)


def read_passkey(fields: Fields) -> Passkey:
    found = fields.values.get("found")
    if not isinstance(found, list) or not found or not all(isinstance(hit, bool) for hit in found):
        raise RecordError(f"{fields.place}: found is {found!r:.60}: must be a list of true and false")
    return Passkey(
        runtime=fields.text("runtime"),
        length=fields.count("length"),
        found=tuple(found),
        prefill_seconds=fields.positive("prefill_seconds"),
        question_seconds=fields.positive("question_seconds"),
    )


def read_overlap(fields: Fields) -> Overlap:
    return Overlap(
        model=fields.text("model"),
        context=fields.count("context"),
        layer=fields.count("layer"),
        neighbours=fields.count("neighbours"),
        chosen_blocks=fields.number("chosen_blocks"),
        union_blocks=fields.number("union_blocks"),
    )


def read_trial(fields: Fields) -> Trial:
    return Trial(
        kernel=fields.text("kernel"),
        candidate=fields.text("candidate"),
        case=fields.text("case"),
        seconds=fields.positive("seconds"),
        spread=fields.number("spread"),
        registers=fields.optional("registers", fields.count),
    )


def read_counter(fields: Fields) -> Counter:
    value = fields.values.get("value")
    text = f"{value:.6g}" if isinstance(value, int | float) else str(value)
    return Counter(kernel=fields.text("kernel"), metric=fields.text("metric"), value=text, unit=_word(fields, "unit"))


def read_step(fields: Fields) -> StepEnd:
    return StepEnd(
        name=fields.text("name"),
        state=fields.text("state"),
        seconds=fields.optional("seconds", fields.number),
        estimate_seconds=fields.optional("estimate_seconds", fields.number),
        message=_word(fields, "message"),
    )


def _word(fields: Fields, name: str) -> str:
    """A text that may be empty or missing."""
    return str(fields.values.get(name) or "")
