"""Options of `sala-export verify` for Polygraphy's comparator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import RequestError
from ..extras import extras_named
from .options import Command, FiniteRange

if TYPE_CHECKING:
    from ..interop.polygraphy.layer_judge import LayerJudge

_STATISTICS = ("elemwise", "max", "mean", "median", "quantile")
_STATISTIC = "max"
_TOLERANCE = 1e-5


def polygraphy_options(command: Command) -> Command:
    """Add `--polygraphy`, `--check-error-stat`, `--atol` and `--rtol`."""
    for option in (
        click.option(
            "--rtol", type=FiniteRange(min=0), help=f"Relative tolerance of Polygraphy.  [default: {_TOLERANCE}]"
        ),
        click.option(
            "--atol", type=FiniteRange(min=0), help=f"Absolute tolerance of Polygraphy.  [default: {_TOLERANCE}]"
        ),
        click.option(
            "--check-error-stat",
            type=click.Choice(_STATISTICS),
            help=f"The figure of a layer that Polygraphy judges.  [default: {_STATISTIC}]",
        ),
        click.option(
            "--polygraphy", is_flag=True, help="Also compare the rows of each layer with Polygraphy's comparator."
        ),
    ):
        command = option(command)
    return command


def layer_judge(
    is_wanted: bool, asked: tuple[str | None, float | None, float | None], *, to_stderr: bool
) -> LayerJudge | None:
    """What compares the layers with Polygraphy. None if nobody asked for it.

    Args: `asked`: statistic, absolute and relative tolerance, None where the user says nothing.
    Raises: RequestError for one of these without --polygraphy, UnsupportedError if Polygraphy is not installed.
    """
    if not is_wanted:
        for option, value in zip(("--check-error-stat", "--atol", "--rtol"), asked, strict=True):
            if value is not None:
                raise RequestError(f"{option} {value} is for Polygraphy: add --polygraphy, or leave it out")
        return None
    with extras_named():
        from ..interop.polygraphy.layer_judge import LayerJudge
    statistic, atol, rtol = asked
    return LayerJudge(
        statistic or _STATISTIC,
        atol=_TOLERANCE if atol is None else atol,
        rtol=_TOLERANCE if rtol is None else rtol,
        to_stderr=to_stderr,
    )
