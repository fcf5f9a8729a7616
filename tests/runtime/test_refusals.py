"""A corrupt bundle for every rule of the format: refused with its own error, in C, C++ and Python."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.c_steps import library_arguments
from support.corrupt_bundles import CORRUPTIONS, link_bundle
from support.native_runtime import sanitized_build
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.errors import BundleError, SalaError

each_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle by the name of every corruption."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, corruption in enumerate(CORRUPTIONS.values()):
        corruption.spoil(link_bundle(tiny_cpu_bundle(), folder / f"{i}.sala"))
    return folder


def bundle_of(corpus: Path, name: str) -> Path:
    return corpus / f"{list(CORRUPTIONS).index(name)}.sala"


def answers_of(program: str, lines: list[str]) -> list[str]:
    command = [sanitized_build() / "tests" / program, *library_arguments()]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def answers(corpus: Path) -> dict[str, dict[str, str]]:
    """What C and C++ answer to each corruption, and to a valid bundle."""
    bundles = [*(bundle_of(corpus, name) for name in CORRUPTIONS), tiny_cpu_bundle()]
    names = [*CORRUPTIONS, "valid"]
    return {
        "C": dict(zip(names, answers_of("sala_c_steps", [f"load {bundle}" for bundle in bundles]), strict=True)),
        "C++": dict(zip(names, answers_of("sala_load_each", [str(bundle) for bundle in bundles]), strict=True)),
    }


@pytest.mark.parametrize("language", ["C", "C++"])
@each_corruption
def test_native_languages_refuse_it_with_its_own_error(
    answers: dict[str, dict[str, str]], language: str, name: str
) -> None:
    answer = answers[language][name]
    assert answer.split(" ")[2] == CORRUPTIONS[name].error, answer
    assert CORRUPTIONS[name].says in answer


@each_corruption
def test_python_refuses_it_before_or_with_the_native_error(corpus: Path, name: str) -> None:
    corruption = CORRUPTIONS[name]
    with pytest.raises(SalaError) as error:
        sala_export.load(bundle_of(corpus, name), threads=1)
    if corruption.reader_says:
        assert isinstance(error.value, BundleError)
    else:
        assert error.value.code == corruption.error
    assert (corruption.reader_says or corruption.says) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, each in CORRUPTIONS.items() if each.reader_says])
def test_the_reader_of_inspect_refuses_it_too(corpus: Path, name: str) -> None:
    with pytest.raises(BundleError) as error:
        Bundle.open(bundle_of(corpus, name))
    assert str(CORRUPTIONS[name].reader_says) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_bundle_they_are_made_from_is_taken(answers: dict[str, dict[str, str]]) -> None:
    assert {language: each["valid"] for language, each in answers.items()} == {"C": "ok", "C++": "ok"}


def test_messages_tell_corruptions_apart(answers: dict[str, dict[str, str]]) -> None:
    """No two kinds of damage read the same; what shares a message is one rule broken in several ways."""
    told = [re.sub(r"\S*\.sala", "BUNDLE", answer) for name, answer in answers["C"].items() if name != "valid"]
    # Six texts that are no JSON object, three paths that lead out of a bundle, and four rules broken in two ways.
    assert len(told) - len(set(told)) <= 5 + 2 + 4
