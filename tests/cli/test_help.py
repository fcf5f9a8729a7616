"""Every command explains itself with an example, which the command line takes as it stands."""

from __future__ import annotations

import re
import shlex
import warnings

import click
import pytest

from sala_export.cli.app import cli


def examples(command: str) -> list[list[str]]:
    """The words of each example in a command's help, up to a pipe."""
    text = cli.commands[command].help or ""
    lines = re.findall(r"^ .*?sala-export (.*?)(?: \|.*)?$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_has_an_example_that_the_command_takes(command: str) -> None:
    found = [words for words in examples(command) if words[0] == command]
    assert found
    for name, *words in found:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # click warns of an option that is there twice
            cli.commands[name].make_context(name, list(words))


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_option_is_explained(command: str) -> None:
    options = [each for each in cli.commands[command].params if isinstance(each, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_exit_codes_are_told() -> None:
    assert "2 after bad input" in (cli.help or "")
