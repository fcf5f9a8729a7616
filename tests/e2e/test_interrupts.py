"""Ctrl-C and SIGTERM at any moment, those included at which the program imports its libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SIGNALS = [
    each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN
]
"""Those that end a program, unless whoever runs the tests has them ignored, as `nohup` does."""

# Runs the program, and sends it a signal when it looks for its module number N.
PROGRAM = """
import os, sys

class Finder:
    left = int(sys.argv.pop(1))
    number = int(sys.argv.pop(1))

    def find_spec(self, name, path=None, target=None):
        Finder.left -= 1
        if Finder.left == 0:
            os.kill(os.getpid(), self.number)

from sala_export.cli import start

sys.meta_path.insert(0, Finder())
start.main()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", [1, 2, 3, 7, 40, 150, 400, 560])
def test_signal_while_modules_are_imported_is_quiet(module: int, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(module), str(int(number)), "plan", "--gpu", "rtx5090", "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # To a shell both are the same: before the program's first line, a signal ends it without its help.
    assert done.returncode in (128 + number, -number), done.stderr
    assert done.stdout == ""
    assert done.stderr.strip() in ("", "error: interrupted")
