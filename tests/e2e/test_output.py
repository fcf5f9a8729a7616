"""Standard output that is closed, full, or whose reader goes away, under every command that writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.writing_commands import QUICK, WRITING_COMMANDS, WritingCommand, checkpoint

STATES = ("generate", "sala-run")


def run(
    command: WritingCommand | list[str | Path], directory: Path, redirection: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with its standard output redirected by a shell."""
    words = command.arguments() if isinstance(command, WritingCommand) else command
    shell = ["bash", "-c", f'exec "$@" {redirection}', "bash", *map(str, words)]
    return subprocess.run(shell, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def without_reader(command: WritingCommand, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = list(map(str, command.arguments()))
        return subprocess.run(words, cwd=directory, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)


def lines_of(told: str) -> list[str]:
    """Lines that tell of an error."""
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    return [line for line in told.splitlines() if line.startswith(("error: ", "sala-run: "))]


@pytest.fixture(scope="module", params=WRITING_COMMANDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_closed_output_is_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    done = run(WRITING_COMMANDS[name], tmp_path, ">&-")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "standard output is closed" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", QUICK)
def test_full_output_is_named_and_loses_no_work(name: str, tmp_path: Path) -> None:
    command = WRITING_COMMANDS[name]
    done = run(command, tmp_path, ">/dev/full")
    assert done.returncode == 1, done.stderr
    *_, line = lines_of(done.stderr)
    assert "standard output cannot be written: No space left on device" in line
    check_output(name, done.stderr, tmp_path)


@pytest.mark.parametrize("name", QUICK)
def test_reader_that_goes_away_loses_no_work(name: str, tmp_path: Path) -> None:
    command = WRITING_COMMANDS[name]
    done = without_reader(command, tmp_path)
    assert done.returncode == 141, done.stderr
    assert [line for line in lines_of(done.stderr) if "saved the" not in line] == []
    check_output(name, done.stderr, tmp_path)


def check_output(name: str, told: str, directory: Path) -> None:
    """The output is there and whole; a state goes on where the work ended."""
    command = WRITING_COMMANDS[name]
    assert [path.name for path in directory.iterdir()] == [command.output]
    command.digest(directory / command.output)
    if name in STATES:
        assert f"tokens that had run to {command.output}: continue with --load-state {command.output}" in told
        going_on = run([*command.arguments(), "--load-state", command.output], directory, "")
        assert going_on.returncode == 0, going_on.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "0<&-", "0<&- 2>&-"])
def test_streams_without_use_fail_nothing_and_their_numbers_go_to_no_file(redirection: str, tmp_path: Path) -> None:
    for name in ("random-checkpoint", "sala-run"):
        folder = tmp_path / name
        folder.mkdir()
        done = run(WRITING_COMMANDS[name], folder, redirection)
        assert done.returncode == 0, done.stderr
        output = WRITING_COMMANDS[name].output
        whole = WRITING_COMMANDS[name].digest(folder / output)
        run(WRITING_COMMANDS[name], folder, "")
        assert WRITING_COMMANDS[name].digest(folder / output) == whole


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_help_and_version_look_at_their_output_too(option: str, redirection: str, tmp_path: Path) -> None:
    program = WRITING_COMMANDS["plan"].arguments()[0]
    done = run([program, option], tmp_path, redirection)
    assert done.returncode == (2 if redirection == ">&-" else 1)
    (line,) = done.stderr.splitlines()
    assert "standard output" in line


def test_prompt_from_closed_input_is_refused(tmp_path: Path) -> None:
    program = WRITING_COMMANDS["generate"].arguments()[0]
    done = run([program, "generate", checkpoint(1), "--prompt-file", "-"], tmp_path, "<&-")
    assert (done.returncode, done.stderr) == (2, "error: --prompt-file -: standard input is closed\n")
