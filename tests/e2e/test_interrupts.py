"""Ctrl-C and SIGTERM at any moment: while the program imports its libraries, and while nobody reads its messages."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.documents import ROOT
from support.text_bundles import tiny_text_bundle
from support.writing_commands import PROGRAM, sala_run

SIGNALS = [
    each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN
]
"""Those that end a program, unless whoever runs the tests has them ignored, as `nohup` does."""

# Runs the program, and sends it a signal when it looks for its module number N.
IMPORTING = """
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
@pytest.mark.parametrize("module", [1, 2, 3, 7, 40, 150, 400])
def test_signal_while_modules_are_imported_is_quiet(module: int, number: signal.Signals) -> None:
    command = [sys.executable, "-c", IMPORTING, str(module), str(int(number)), "plan", "--gpu", "rtx5090", "--json"]
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
    # What an editable installation imports to find the package is not of the program.
    command = [sys.executable, "-S", "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sala_export", "sala_export.cli"]


def fill(descriptor: int) -> None:
    """Write until nothing more goes in."""
    os.set_blocking(descriptor, False)
    try:
        while True:
            os.write(descriptor, b"x")
    except BlockingIOError:
        os.set_blocking(descriptor, True)


def wait_until_read(pipe: int) -> None:
    """Wait until a program has read all that was written into a pipe."""
    waiting = array.array("i", [1])
    while waiting[0]:
        time.sleep(0.1)
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)


def generate_from_a_pipe() -> list[str | Path]:
    options = ["--runtime", "onnxruntime", "--max-context", "1K", "--save-state", "out.state"]
    return [PROGRAM, "generate", tiny_text_bundle(), "--prompt-file", "-", *options]


def sala_run_from_a_pipe() -> list[str | Path]:
    arguments = sala_run("new")
    arguments[arguments.index("--tokens") + 1] = "-"
    return arguments


def interrupted(
    command: list[str | Path], prompt: bytes, number: signal.Signals, directory: Path, messages: int
) -> int:
    """Send a program a signal while a full `messages` holds it up. Returns its exit code."""
    with subprocess.Popen(
        command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages
    ) as program:
        try:
            assert program.stdin is not None
            program.stdin.write(prompt)
            program.stdin.flush()
            if os.isatty(messages) and PROGRAM in command:  # its progress bar waits before the prompt is read
                time.sleep(3)
            else:
                wait_until_read(program.stdin.fileno())
                program.stdin.close()
                time.sleep(1)
            assert program.poll() is None, "a message waits for a reader"
            program.send_signal(number)
            return program.wait(timeout=8)
        finally:
            program.kill()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("open_pair", [os.pipe, pty.openpty])
@pytest.mark.parametrize(
    ("command", "prompt"), [(generate_from_a_pipe, b"dudelu sete"), (sala_run_from_a_pipe, b"5 17 42")]
)
def test_messages_that_nobody_reads_do_not_hold_a_signal_up(
    command: Callable[[], list[str | Path]],
    prompt: bytes,
    open_pair: Callable[[], tuple[int, int]],
    number: signal.Signals,
    tmp_path: Path,
) -> None:
    reading, writing = open_pair()
    try:
        fill(writing)
        assert interrupted(command(), prompt, number, tmp_path, writing) == 128 + number
    finally:
        os.close(reading)
        os.close(writing)
    has_run = open_pair is os.pipe or command is sala_run_from_a_pipe
    assert [path.name for path in tmp_path.iterdir()] == (["out.state"] if has_run else [])
