"""What was predicted for a GPU, and why a measurement is far from it: `benchmarks/expected/*.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.recorded_figures import RecordError
from benchmarks.tables import duration, markdown

LEAST, MOST = 3 / 4, 4 / 3
"""Of measured over predicted: beyond them the two differ by more than a third."""
FOLDER = Path("benchmarks", "expected")


class Place(NamedTuple):
    """What a prediction is of."""

    gpu: str
    """Name of a recipe."""
    call: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectations:
    """All predictions, in seconds, and all reasons."""

    source: str
    """Who predicted, from what."""
    seconds: Mapping[Place, float]
    reasons: Mapping[Place, str]

    def compare(self, place: Place, seconds: float) -> Comparison | None:
        """A measured time beside its prediction; None if there is none."""
        predicted = self.seconds.get(place)
        return None if predicted is None else Comparison(place=place, seconds=seconds, predicted=predicted)

    def knows(self, gpu: str) -> bool:
        return any(place.gpu == gpu for place in self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A measured time and a predicted one."""

    place: Place
    seconds: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.seconds / self.predicted

    @property
    def is_far(self) -> bool:
        """The two differ by more than a third; exactly a third is not far."""
        at_border = any(math.isclose(self.ratio, border, rel_tol=1e-9) for border in (LEAST, MOST))
        return not at_border and not LEAST < self.ratio < MOST


def comparison_cells(comparison: Comparison | None) -> tuple[str, str]:
    """Of a table: what was predicted, and measured over predicted, in bold if they are far apart."""
    if comparison is None:
        return "", ""
    ratio = f"{comparison.ratio:.2f}"
    return duration(comparison.predicted), f"**{ratio}**" if comparison.is_far else ratio


def far_lines(found: Mapping[str, Comparison], expectations: Expectations) -> list[str]:
    """A paragraph on each measurement that is far from its prediction, by its name in the table; why, or not known."""
    lines = []
    for name, comparison in found.items():
        if comparison.is_far:
            told = f"{duration(comparison.seconds)} measured, {duration(comparison.predicted)} predicted"
            why = expectations.reasons.get(comparison.place, "why is not known")
            lines.append(f"* {name}: {told}, {comparison.ratio:.2f} times that: {why}")
    return lines


def require_used_reasons(expectations: Expectations, found: list[Comparison]) -> None:
    """Raises: RecordError naming the first reason that no measurement needs."""
    needed = {comparison.place for comparison in found if comparison.is_far}
    for place in expectations.reasons:
        if place not in needed:
            what = f"{FOLDER / 'reasons.toml'}: {', '.join(place)}"
            raise RecordError(f"{what}: no measurement there is more than a third off: remove it")


def predictions_table(expectations: Expectations) -> str:
    """All predictions, a column for each GPU that has some."""
    gpus = list(dict.fromkeys(place.gpu for place in expectations.seconds))
    rows = dict.fromkeys((place.call, place.what) for place in expectations.seconds)
    lines = []
    for call, what in rows:
        times = (expectations.seconds.get(Place(gpu, call, what)) for gpu in gpus)
        lines.append((call, what, *("" if time is None else duration(time) for time in times)))
    return markdown(("call", "what", *(f"predicted, {gpu}" for gpu in gpus)), lines)


def read_expectations(root: Path) -> Expectations:
    """Read both files below a checkout. Raises: RecordError, in one line, if one is malformed."""
    predictions, reasons = (_toml(root / FOLDER / name) for name in ("predictions.toml", "reasons.toml"))
    source = predictions.pop("source", None)
    if not isinstance(source, str):
        raise RecordError(f"{FOLDER / 'predictions.toml'}: needs source, a text that says who predicted and from what")
    return Expectations(
        source=source.strip(),
        seconds=_places("predictions.toml", predictions, _is_time, "seconds above 0"),
        reasons=_places(
            "reasons.toml", reasons, lambda text: isinstance(text, str) and bool(text.strip()), "a sentence"
        ),
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from None


def _places(name: str, content: dict[str, Any], accepts: Callable[[object], bool], wanted: str) -> dict[Place, Any]:
    """The values of `[gpus.GPU."CALL"]` by their places."""
    if set(content) != {"gpus"}:
        raise RecordError(f"{FOLDER / name}: has {', '.join(sorted(content)) or 'nothing'}: must have [gpus] alone")
    found = {}
    for place, value in _leaves(content["gpus"], ()):
        if len(place) != len(Place._fields) or not accepts(value):
            raise RecordError(f'{FOLDER / name}: {", ".join(place)}: must be {wanted} below [gpus.GPU."CALL"]')
        found[Place(*place)] = value
    return found


def _leaves(tree: object, above: tuple[str, ...]) -> list[tuple[tuple[str, ...], object]]:
    if not isinstance(tree, dict):
        return [(above, tree)]
    return [leaf for name, inner in tree.items() for leaf in _leaves(inner, (*above, name))]
