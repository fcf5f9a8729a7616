"""The program `sala-export`, from its first moment on: quiet about Ctrl-C also while it imports its libraries."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    try:
        from .signals import leave_at_once

        leave_at_once()
    except KeyboardInterrupt:
        os._exit(130)
    from .streams import prepare

    prepare()
    from .app import main

    main()
