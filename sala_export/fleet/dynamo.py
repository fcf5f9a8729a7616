"""A worker of NVIDIA Dynamo: `python -m sala_export.fleet.dynamo out.sala --state-store states`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import SalaError, UnsupportedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to end. Returns an exit code."""
    try:
        _run(arguments)
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _run(arguments: Sequence[str] | None) -> None:
    try:
        from dynamo.common.backend.run import run

        from .dynamo_engine import SalaEngine
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this needs the package {error.name}, which comes with NVIDIA Dynamo: install ai-dynamo 1.6, as "
            "docs/fleet.md shows"
        ) from None
    run(SalaEngine, None if arguments is None else [*arguments])


if __name__ == "__main__":
    raise SystemExit(main())
