"""The figures of a run, one model for each kind, whose fields `benchmarks/figures.py` lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from benchmarks.figures import WAYS, Figure
from benchmarks.kernel_cases import LIGHTNING, SPARSE
from benchmarks.kernel_measure import Row

_OPERATORS = {"Lightning": LIGHTNING, "InfLLM-v2": SPARSE}
"""By the first words of the name of a call."""


class RecordError(Exception):
    """Figures, or what is said about them, that cannot go into a document: in one line."""


def operator_of(call: str) -> str:
    """The operator that a call of `benchmarks/kernel_cases.py` is of, by its name."""
    return next(operator for prefix, operator in _OPERATORS.items() if call.startswith(prefix))


def _no_number_as_infinity(value: object) -> object:
    return math.inf if value is None or value != value else value


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A time that something took."""
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""How many of something a second."""
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Way = Annotated[str, Field(pattern=f"^({'|'.join(WAYS)})$")]
Call = Annotated[str, Field(pattern=f"^({'|'.join(_OPERATORS)})")]
Error = Annotated[float, BeforeValidator(_no_number_as_infinity), Field(ge=0)]
"""Infinite if what came out was no number, or nothing came out."""


class _Figure(BaseModel):
    """Fields that no document needs are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Timed(_Figure):
    """A timed launch, operator or peer, and which code ran."""

    way: Way
    case: Call
    dtype: Text
    what: Text
    seconds: Seconds
    spread: Share
    rounds: Count
    floor_seconds: Share | None
    roofline_seconds: Share | None

    @property
    def row(self) -> Row:
        return Row(**self.model_dump(exclude={"way"}))

    @property
    def gate(self) -> tuple[str, str, str]:
        """Way, operator and type whose gate it depends on."""
        return self.way, operator_of(self.case), self.dtype


class Gate(_Figure):
    """A tensor of an operator beside its float64 reference."""

    way: Way
    operator: Text
    check: Text
    dtype: Text
    tensor: str
    """Empty if the check could not run."""
    error: Error
    limit: Error
    passed: bool
    message: str = ""
    """Why the check could not run, else empty."""

    @model_validator(mode="after")
    def _passes_with_a_number(self) -> Gate:
        if self.passed and not self.error <= self.limit < math.inf:
            raise ValueError(f"passed, though error is {self.error} and limit {self.limit}")
        return self

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


class Runs(_Figure):
    """Seconds: median, spread, and the floor of the GPU where it is known."""

    median: Seconds
    spread: Share
    floor: Seconds | None


class FirstToken(_Figure):
    """One context of `benchmarks.ttft`."""

    runtime: Text
    precision: Text
    layers: Count
    context: Count
    agrees: bool
    """With the reference model."""
    first: Runs = Field(alias="first_token_seconds")
    token: Runs | None = Field(alias="token_seconds")
    published: Mapping[str, Seconds] = Field(alias="published_first_token_seconds")
    """Seconds to the first token by GPU; only the published model has them."""
    device_bytes: Count | None = Field(alias="device_memory_bytes")
    predicted_bytes: Count | None = Field(alias="predicted_device_memory_bytes")
    host_bytes: Count | None = Field(alias="host_memory_bytes")


class Passkey(_Figure):
    """One prompt of `benchmarks.passkey`."""

    runtime: Text
    length: Count
    found: Annotated[tuple[bool, ...], Strict(False), Field(min_length=1)]
    prefill_seconds: Seconds
    question_seconds: Seconds


class Forks(_Figure):
    """A context of `benchmarks.forks`, and forks of it."""

    runtime: Text
    model: Text
    layers: Count
    tokens: Count
    prefill_seconds: Seconds
    session_bytes: Count
    fork_bytes: Count
    fork_seconds: Seconds
    first_answer_seconds: Seconds
    forks: Count
    forks_bytes: Count
    rewind_middle_seconds: Seconds


class Batch(_Figure):
    """Sessions of `benchmarks.batches` that draw together, beside one by itself."""

    runtime: Text
    model: Text
    layers: Count
    context: Count
    sessions: Count
    tokens_per_second: Rate
    alone_tokens_per_second: Rate


class Overlap(_Figure):
    """Chosen blocks of neighbouring tokens in one layer: of one token, and of all of them together; means."""

    model: Text
    context: Count
    layer: Count
    neighbours: Count
    chosen_blocks: Share
    union_blocks: Share


class Trial(_Figure):
    """A candidate tile, or constants, in a call."""

    way: Way
    kernel: Text
    dtype: Text
    candidate: Text
    case: Call
    seconds: Seconds
    spread: Share
    registers: Count | None

    @property
    def gate(self) -> tuple[str, str, str]:
        """As `Timed.gate`."""
        return self.way, operator_of(self.case), self.dtype


class Counter(_Figure):
    """A counter of ncu."""

    kernel: Text
    metric: Text
    value: float
    unit: str


class StepEnd(_Figure):
    """How a step of the run ended."""

    name: Text
    state: Text
    seconds: Share
    estimate_seconds: Share
    message: str = ""


class Problem(_Figure):
    """Whatever went wrong."""

    where: Text
    message: str


class Machine(_Figure):
    """Of the header; nvidia-smi's words of each GPU."""

    gpu: str | None
    compute_capability: str | None = None
    torch: Text
    triton: Text
    gpus: Annotated[tuple[Mapping[str, str], ...], Strict(False)] = ()


class Head(_Figure):
    """The first line of a file."""

    machine: Machine
    commit: str | None
    started: Annotated[AwareDatetime, Strict(False)]
    rehearsal: bool


Kind = TypeVar("Kind", bound=_Figure)


def read(kind: type[Kind], place: str, figure: Figure) -> Kind:
    """A figure as its kind. Raises: RecordError with the place and the first field that is wrong."""
    try:
        return kind.model_validate(figure)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [place, ".".join(map(str, first["loc"])), f"{first['msg']}, not {first['input']!r:.60}"]
        raise RecordError(": ".join(filter(None, parts))) from None
