"""Saves plots. They need matplotlib, which is optional, so that it is asked for before the work that is to be drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RequestError, UnsupportedError
from .staging import staged_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_DOTS_PER_INCH = 150


@contextmanager
def plot_file(path: Path | None) -> Iterator[Callable[[Figure], None] | None]:
    """Yield a function that saves a figure as `path`, in the format of its ending, whole or not at all.

    None for no path. Enter the block before the work: what stands in the way is found then.

    Raises: RequestError for another ending or a path that cannot be written, UnsupportedError without matplotlib.
    """
    if path is None:
        yield None
        return
    if path.suffix not in _SUFFIXES:
        raise RequestError(f"--plot {path}: expected a name that ends in {', '.join(_SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")
    with staged_file(path) as file:

        def save(figure: Figure) -> None:
            figure.savefig(file, format=path.suffix[1:], dpi=_DOTS_PER_INCH)

        yield save
