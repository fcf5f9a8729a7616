"""The program `sala-export`, from its first moment on: quiet about Ctrl-C also while it imports its libraries.

To import this module is to begin the program: from then on a signal ends the process on the spot. What is imported
before it, the two packages that it lies in, must import nothing that takes time.
"""

from __future__ import annotations

import os

try:
    from .signals import leave_at_once

    leave_at_once()
except KeyboardInterrupt:
    os._exit(130)


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    from .streams import prepare

    prepare()
    from .app import main

    main()
