"""Writes what came back from a GPU into the documents: its raw figures, and the tables made of them.

    python -m benchmarks.record DIR       # record DIR/figures.jsonl (or a file), and write the tables
    python -m benchmarks.record           # write the tables again, after an edit of benchmarks/expected/reasons.toml
    python -m benchmarks.record --check   # only compare: exit code 1 if a document is not what would be written

The raw figures go to benchmarks/results/. Two pages are made of everything there, docs/kernel_measurements.md and
docs/runtimes.md: the newest figures of each GPU, beside their goals, floors and predictions. docs/kernels.md gets a
summary, and docs/kernel_predictions.md what was predicted. Figures of a rehearsal, without a GPU or without a commit
are refused. Times of an operator that failed its gate are left out and named. If anything is refused, nothing is
written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.expectations import read_expectations, require_used_reasons
from benchmarks.figures import FiguresError
from benchmarks.record_common import RESULTS
from benchmarks.record_kernels import kernels_section
from benchmarks.record_runtimes import runtimes_section
from benchmarks.record_summary import predictions_section, summary_section
from benchmarks.recorded_figures import RecordError
from benchmarks.recorded_run import Run, newest, read_run

ROOT = Path(__file__).parents[1]
FIGURES = "figures.jsonl"
DOCUMENTS = {
    "measurements": Path("docs", "kernel_measurements.md"),
    "kernels": Path("docs", "kernels.md"),
    "predictions": Path("docs", "kernel_predictions.md"),
    "runtimes": Path("docs", "runtimes.md"),
}
"""By the name in their mark."""
_WARNING = "<!-- Written by `python -m benchmarks.record`: edits are lost. -->"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; exits with 2 if they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "figures", nargs="?", type=Path, metavar="DIR", help=f"folder with {FIGURES}, or a file like it"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and exit with 1 if a document would change"
    )
    options = parser.parse_args(arguments)
    if options.check and options.figures:
        parser.error("--check compares the documents with what is recorded: leave DIR out")
    return options


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 0, 1 if `--check` finds a difference, or 2 with one line if something is refused."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        new = changes(root, options.figures)
        if options.check:
            return _report_drift(root, new)
        replace_together(new)
    except (RecordError, FiguresError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in new:
        print(f"written: {path.relative_to(root)}")
    if not new:
        print("nothing to write: the documents hold everything that is recorded")
    return 0


def _report_drift(root: Path, new: Mapping[Path, str]) -> int:
    for path in new:
        print(f"{path.relative_to(root)} is not what is recorded: run python -m benchmarks.record", file=sys.stderr)
    return 1 if new else 0


def changes(root: Path, figures: Path | None) -> dict[Path, str]:
    """Every file of a checkout that recording writes and that does not have this text yet, with its new text.

    Args: `figures` is a folder with `figures.jsonl`, or a file like it; None records nothing new.
    Raises: RecordError or FiguresError, in one line, for whatever must not be recorded.
    """
    runs = recorded_runs(root)
    new = {}
    if figures is not None:
        run = read_run(figures / FIGURES if figures.is_dir() else figures)
        path = root / RESULTS / run.header.file_name
        _require_no_loss(runs.get(path), run, path)
        runs[path] = run
        new[path] = run.text
    new |= documents(root, runs.values())
    return {path: text for path, text in new.items() if not path.exists() or _read(path) != text}


def recorded_runs(root: Path) -> dict[Path, Run]:
    """Everything in `benchmarks/results/` by its path.

    Raises: FiguresError or RecordError as `read_run`, also for a file that has not the name of its run.
    """
    runs = {path: read_run(path) for path in sorted((root / RESULTS).glob("*.jsonl"))}
    for path, run in runs.items():
        if path.name != run.header.file_name:
            raise RecordError(f"{path}: by its first line its name must be {run.header.file_name}")
    return runs


def _require_no_loss(old: Run | None, new: Run, path: Path) -> None:
    """What stands there may only be replaced by the same run with more lines."""
    if old is not None and not new.text.startswith(old.text):
        raise RecordError(f"{path} exists and has other figures: a run is never overwritten")


def documents(root: Path, runs: Iterable[Run]) -> dict[Path, str]:
    """All documents with their marked parts written anew."""
    expectations = read_expectations(root)
    shown = newest(runs)
    measurements, compared_kernels = kernels_section(shown, expectations)
    runtimes, compared_runtimes = runtimes_section(shown, expectations)
    require_used_reasons(expectations, [*compared_kernels, *compared_runtimes])
    sections = {
        "measurements": measurements,
        "kernels": summary_section(shown, expectations),
        "predictions": predictions_section(expectations),
        "runtimes": runtimes,
    }
    paths = {name: root / relative for name, relative in DOCUMENTS.items()}
    return {path: with_section(path, name, sections[name]) for name, path in paths.items()}


def with_section(path: Path, name: str, section: str) -> str:
    """The text of a document with another marked part. Raises: RecordError unless it has the marks exactly once."""
    begin, end = f"<!-- record: {name} -->", "<!-- /record -->"
    before, *marked = _read(path).split(f"{begin}\n")
    _, *after = marked[0].split(f"{end}\n") if len(marked) == 1 else ("",)
    if len(after) != 1:
        raise RecordError(f"{path}: must have the lines {begin} and {end} once, in this order")
    return f"{before}{begin}\n{_WARNING}\n\n{section}\n\n{end}\n{after[0]}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from None


def replace_together(new: Mapping[Path, str]) -> None:
    """Write all files or none: each beside its place first, then all are put in place.

    Raises: RecordError if the disk refuses; what was there before is there again.
    """
    old = {path: path.read_bytes() if path.exists() else None for path in new}
    staged = {path: path.with_name(f".{path.name}.new") for path in new}
    try:
        for path, text in new.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path].write_text(text, encoding="utf-8")
        for path, beside in staged.items():
            beside.replace(path)
    except OSError as error:
        for path, content in old.items():
            _put_back(path, content)
        raise RecordError(f"cannot write: {error}; nothing was changed") from None
    finally:
        for beside in staged.values():
            beside.unlink(missing_ok=True)


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != content:
        path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
