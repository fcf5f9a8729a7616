"""The images, as far as files can tell: no engine that builds or runs them is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.documents import ROOT, forbidden_names
from support.passkey_text import passkey_text_bundle
from support.server import running_server

from plugins.aot.contracts import source_files
from sala_export.cli.cmd_serve import serve
from sala_export.ops.registry import CONTRACTS

DOCKER = ROOT / "docker"
DOCKERFILE = DOCKER / "Dockerfile"
FILES = [*sorted(path for path in DOCKER.iterdir() if path.name != ".env"), ROOT / ".dockerignore"]
IMAGES = pytest.mark.parametrize("image", ["builder", "runtime", "serve"])
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

UNPINNED = {"triton"}
"""Dependencies whose version the builder image leaves open; `constraints.txt` says why."""

Instruction = tuple[str, str]
"""Name in capitals, and arguments in one line."""


def stages() -> dict[str, list[Instruction]]:
    """The instructions of every stage by its name, FROM first."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in filter(None, re.sub(r"\\\n\s*", " ", text).splitlines()):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            current = found[arguments.rpartition(" AS ")[2]] = []
        current.append((name, arguments))
    return found


def arguments_of(image: str, name: str) -> list[str]:
    """Arguments of every instruction of this name in a stage."""
    return [arguments for instruction, arguments in stages()[image] if instruction == name]


def pins(file: str) -> dict[str, str]:
    """Version by canonical name of every requirement in a file, each of which must be one exact version."""
    found = {}
    for line in (DOCKER / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)", line)
        assert match is not None, line
        found[match[1]] = match[2]
    return found


def dependencies(*extras: str) -> dict[str, Requirement]:
    """What the package itself requires, and what these extras of it do, by canonical name."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    found = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(need.name): need for need in found if need.name != project["name"]}


def in_context(path: str) -> bool:
    """Whether `.dockerignore` lets a top-level file or folder into the build context."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in rules
    return f"!{path.split('/')[0]}" in rules


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_stages_start_from_one_tagged_release_with_or_without_python() -> None:
    bases = {stage: arguments_of(stage, "FROM")[0].partition(" AS ")[0] for stage in stages()}
    plain = {base for stage, base in bases.items() if stage.startswith("edge")}
    python = set(bases.values()) - plain
    assert len(plain) == len(python) == 1
    release = re.fullmatch(r"debian:([a-z]+)-slim", plain.pop())
    assert release is not None
    assert re.fullmatch(rf"python:3\.\d+-slim-{release[1]}", python.pop())


@pytest.mark.parametrize("image", ["builder", "runtime", "serve", "edge"])
def test_image_runs_as_an_ordinary_user_and_checks_itself(image: str) -> None:
    names = [name for name, _ in stages()[image]]
    (user,) = arguments_of(image, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "RUN" not in names[names.index("USER") :]
    assert len(arguments_of(image, "HEALTHCHECK")) == 1


@IMAGES
def test_entry_point_is_a_command_of_the_package(image: str) -> None:
    (entry,) = arguments_of(image, "ENTRYPOINT")
    assert entry.strip('[]"') in PROJECT["project"]["scripts"]


@IMAGES
def test_mounted_files_are_in_the_build_context(image: str) -> None:
    sources = re.findall(r"type=bind,source=([^,]+)", " ".join(arguments_of(image, "RUN")))
    assert sources
    for source in sources:
        assert (ROOT / source).is_file()
        assert in_context(source)


def test_edge_is_built_by_a_preset_that_needs_no_python() -> None:
    presets = json.loads((ROOT / "runtime" / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]
    (release,) = [preset for preset in presets if preset["name"] == "release"]
    assert release["cacheVariables"]["CMAKE_DISABLE_FIND_PACKAGE_Python3"] is True
    assert "cmake -S runtime --preset release" in " ".join(arguments_of("edge-build", "RUN"))
    assert arguments_of("edge", "ENTRYPOINT") == ['["sala-run"]']


def test_build_context_holds_what_the_package_is_built_from() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    named = re.findall(r"add_subdirectory\(([\w/]+)\)|install\(DIRECTORY (\w+)/|CMAKE_CURRENT_SOURCE_DIR}/(\w+)", cmake)
    needed = {"CMakeLists.txt", "pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= {next(filter(None, groups)) for groups in named}
    needed |= set(PROJECT["tool"]["scikit-build"]["wheel"]["packages"])
    needed |= set(map(str, source_files(CONTRACTS)))
    assert {"plugins", "runtime", "engines", "cmake", "plugins/cpu/operators.h"} <= needed
    assert [path for path in sorted(needed) if not in_context(path)] == []


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned, needed = pins("constraints.txt"), dependencies("torch", "build", "gpu", "serve")
    assert needed.keys() - pinned.keys() == UNPINNED
    wrong = [str(need) for name, need in needed.items() if name in pinned and pinned[name] not in need.specifier]
    assert wrong == []


@pytest.mark.parametrize(
    ("image", "wheel"),
    [
        ("builder", '"$(echo /wheels/*.whl)[torch]"'),
        ("runtime", "/wheels/*.whl"),
        ("serve", '"$(echo /wheels/*.whl)[serve,gpu]"'),
    ],
)
def test_image_installs_the_wheel_for_what_it_does(image: str, wheel: str) -> None:
    (command,) = [run for run in arguments_of(image, "RUN") if "pip install" in run]
    assert f"--constraint /constraints.txt {wheel} " in command


def test_server_writes_to_its_volume_alone_and_wants_a_key() -> None:
    (command,) = arguments_of("serve", "CMD")
    name, *arguments = json.loads(command)
    given = serve.make_context(name, arguments).params
    (volumes,) = arguments_of("serve", "VOLUME")
    (volume,) = map(Path, json.loads(volumes))
    # What TensorRT compiles is kept beside the bundle.
    assert (given["state_store"].parent, given["bundle"].parent) == (volume, volume)
    assert (given["host"], given["api_key_file"].name) == ("0.0.0.0", "keys")
    assert arguments_of("serve", "EXPOSE") == [str(given["port"])]
    assert arguments_of("serve", "STOPSIGNAL") == ["SIGTERM"]


def test_health_check_tells_whether_the_server_answers() -> None:
    with running_server(passkey_text_bundle()) as server:
        port = server.url.rpartition(":")[2]
        assert health_check(port) == 0
        server.service.is_draining = True
        assert health_check(port) == 1
    assert health_check(port) == 1


def health_check(port: str) -> int:
    """The exit code of the server's health check at another port, where the environment names a proxy that is none."""
    (check,) = arguments_of("serve", "HEALTHCHECK")
    (exposed,) = arguments_of("serve", "EXPOSE")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    assert arguments[-1].count(exposed) == 1
    arguments[-1] = arguments[-1].replace(exposed, port)
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, check=False
    ).returncode


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_no_machine_and_no_registry_is_named(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace(" /tmp:", " ")  # a folder of the container
    assert forbidden_names(text) == []
