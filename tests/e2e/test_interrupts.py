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


# Imports the program as its installed script does, and gets a signal where it would begin.
BEGINNING = """
import os, sys

from sala_export.cli.start import main

os.kill(os.getpid(), int(sys.argv[1]))
print("the signal came to nothing")
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_between_the_import_and_the_begin_of_the_program_is_quiet(number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", BEGINNING, str(int(number))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_first_modules_of_the_program_import_nothing_large() -> None:
    """What they import comes before the program can be quiet about a signal."""
    program = (
        "import sys; before = set(sys.modules)\n"
        "import sala_export.cli\n"
        "print(*sorted(set(sys.modules) - before - {'__future__'}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sala_export", "sala_export.cli"]
