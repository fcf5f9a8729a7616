"""The harness's own command line, which knows the model `sala` too."""

from __future__ import annotations

import sys

from ...errors import SalaError
from . import register


def main() -> int:
    """Run the command line of this process. Returns the exit code.

    An error of ours is one line. Those of the harness, of its tasks and their packages come out as it raises them.
    """
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
