"""docs/embedding.md, followed to the letter: the package is built without Python, installed, and used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.documents import ROOT
from support.embedding import EXAMPLES, command_blocks, installed, page_outputs, run
from support.text_bundles import tiny_text_bundle

import sala_export
from sala_export.runtime.model import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return sala_export.load(tiny_text_bundle(), threads=2)


def tokens_of(model: Model, *prompts: list[int], max_new_tokens: int = 16) -> list[str]:
    """What Python generates after each prompt of one session, a line each, as the examples print it."""
    session = model.session(max_context=65536)
    lines = []
    for prompt in prompts:
        session.prefill(iter(prompt))  # a stream, like the examples'
        lines.append(" ".join(map(str, session.generate_tokens(max_new_tokens=max_new_tokens))))
    return lines


def ids_in(text: str) -> list[str]:
    """Its lines that are token ids."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if re.fullmatch(r"\d+( \d+)*", line)]


def test_sala_run_of_the_release_generates_what_python_does(model: Model) -> None:
    session = model.session()
    session.prefill([5, 17, 42, 99])
    expected = " ".join(map(str, session.generate_tokens(max_new_tokens=4)))
    assert ids_in(page_outputs()[1]) == [expected]


def test_program_found_through_path_finds_its_libraries(tmp_path: Path) -> None:
    """As in an image: neither the working directory nor the name of the program leads to the libraries."""
    environment = {"PATH": f"{installed() / 'bin'}:/usr/bin:/bin"}
    command = ["sh", "-c", f"echo 5 17 42 99 | sala-run {tiny_text_bundle()} --tokens - --max-new-tokens 4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ids_in(done.stdout) == ids_in(page_outputs()[1])


def test_examples_generate_what_python_does(model: Model) -> None:
    once, twice = tokens_of(model, [5, 17, 42, 99], [7, 8, 9])
    (other,) = tokens_of(model, [7, 8, 9])
    assert ids_in(page_outputs()[2]) == [once, twice, once, once, other]


def test_pkg_config_is_enough_for_c(model: Model) -> None:
    assert ids_in(page_outputs()[3]) == tokens_of(model, [5, 17, 42, 99])


def test_text_goes_through_a_pipe(model: Model) -> None:
    assert model.tokenizer is not None
    session = model.session()
    session.prefill(model.tokenizer.encode("The sky is", add_special_tokens=True))
    answer = list(session.generate_tokens(max_new_tokens=8))
    decoder = model.tokenizer.stream_decoder()
    assert page_outputs()[4] == "".join(map(decoder.push, answer)) + decoder.finish()


def test_every_block_of_the_page_is_one_that_a_test_runs() -> None:
    assert len(command_blocks()) == 5
    assert len(command_blocks("aarch64")) == 1


def test_release_was_configured_without_python() -> None:
    installed()
    cache = (ROOT / "build" / "x86-64" / "CMakeCache.txt").read_text(encoding="utf-8")
    assert "CMAKE_DISABLE_FIND_PACKAGE_Python3:BOOL=TRUE" in cache
    assert not re.search(r"^_?Python3?_EXECUTABLE", cache, re.MULTILINE)


def test_program_in_cpp_has_forty_lines() -> None:
    assert len((ROOT / "examples" / "generate.cc").read_text(encoding="utf-8").splitlines()) <= 40


def test_package_works_where_it_was_moved_to(tmp_path: Path) -> None:
    run(f"cp -a {installed()} {tmp_path}/elsewhere")
    run(f"cmake -S examples -B {tmp_path}/build -G Ninja -D CMAKE_PREFIX_PATH={tmp_path}/elsewhere")
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text(encoding="utf-8")
    assert f"Sala_DIR:PATH={tmp_path}/elsewhere/lib/cmake/Sala" in cache
    targets = (tmp_path / "elsewhere/lib/cmake/Sala/SalaTargets.cmake").read_text(encoding="utf-8")
    assert str(ROOT) not in targets
    assert {"Sala::sala", "Sala::runtime", "Sala::operators"} <= set(re.findall(r"Sala::\w+", targets))


def test_a_program_asks_for_a_version_that_is_there(tmp_path: Path) -> None:
    project = "cmake_minimum_required(VERSION 3.25)\nproject(asks LANGUAGES CXX)\nfind_package(Sala 0.2 REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project, encoding="utf-8")
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert 'compatible with requested version "0.2"' in " ".join(done.stderr.split())


@pytest.mark.parametrize("program", ["generate_c", "generate_cpp", "schedule_c"])
def test_example_says_in_one_line_what_is_wrong(program: str, tmp_path: Path) -> None:
    installed()
    state = [tmp_path / "a.state"] if program == "generate_c" else []
    command = [EXAMPLES / program, tmp_path / "missing.sala", *state]
    done = subprocess.run(command, capture_output=True, text=True, check=False, input="")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{program.partition('_')[0]}: BundleMissing: ")
    assert done.stderr.count("\n") == 1
