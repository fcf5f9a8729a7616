"""scripts/install.sh on systems that lack something: one line that says what, before anything is made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[2] / "scripts" / "install.sh"
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def system(folder: Path, **programs: str) -> Path:
    """A folder for PATH with these programs, which are lines of bash, and what the script itself needs."""
    folder.mkdir()
    for name in ("cut", "dirname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, line in programs.items():
        (folder / name.replace("cxx", "c++")).write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
        (folder / name.replace("cxx", "c++")).chmod(0o755)
    return folder


def install(checkout: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "scripts" / "install.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(INSTALL, script)
    command = ["/bin/bash", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": str(path)})


def python_without(*modules: str) -> str:
    """A Python that does not find these modules."""
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split()))"
    return (
        f'[ "$1" = -c ] && exec {sys.executable} -c "{code}; exec(sys.argv[2])" "{" ".join(modules)}" "$2"\n'
        f'exec {sys.executable} "$@"'
    )


OLD_PYTHON = f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 12); exec(sys.argv[1])" "$2"'
NO_HEADERS = (
    f"exec {sys.executable} -c \"import sys, sysconfig; sysconfig.get_path = lambda name: '/nowhere'; "
    'exec(sys.argv[1])" "$2"'
)


@pytest.mark.parametrize(
    ("programs", "line"),
    [
        ({}, "Python 3.11 or newer is needed: sudo apt install g++ python3-dev python3-venv, on Ubuntu 22.04 g++-12"),
        ({"python3": OLD_PYTHON}, "Python 3.11 or newer is needed"),
        ({"python3": python_without()}, "this system lacks a C++ compiler (GCC 12 or newer): sudo apt install g++\n"),
        (
            {"python3": python_without(), "cxx": "exit 1"},
            "this system lacks a C++ compiler (GCC 12 or newer): sudo apt install g++-12\n",
        ),
        (
            {"python3": python_without("ensurepip"), "cxx": ""},
            f"this system lacks Python's venv: sudo apt install {VERSION}-venv\n",
        ),
        ({"python3": NO_HEADERS, "cxx": ""}, f"this system lacks Python's headers: sudo apt install {VERSION}-dev\n"),
        (
            {"python3": python_without("ensurepip")},
            f"this system lacks a C++ compiler (GCC 12 or newer), Python's venv: sudo apt install g++ {VERSION}-venv\n",
        ),
        (
            {"python3": python_without(), "dnf": ""},
            "this system lacks a C++ compiler (GCC 12 or newer): sudo dnf install gcc-c++ python3-devel\n",
        ),
    ],
)
def test_what_is_missing_is_one_line(programs: dict[str, str], line: str, tmp_path: Path) -> None:
    done = install(tmp_path / "checkout", system(tmp_path / "bin", **programs))
    assert line in done.stderr
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert [path.name for path in (tmp_path / "checkout").iterdir()] == ["scripts"]


def test_newer_python_beside_an_old_one_is_taken(tmp_path: Path) -> None:
    path = system(tmp_path / "bin", **{"python3": OLD_PYTHON, "python3.12": python_without()})
    assert "lacks a C++ compiler" in install(tmp_path / "checkout", path).stderr


@pytest.mark.parametrize(
    "arguments", [["--heavy"], ["--light", "--light"], ["torch", "test"], ["--architectures", "sm_87"]]
)
def test_other_arguments_are_refused(arguments: list[str], tmp_path: Path) -> None:
    done = install(tmp_path / "checkout", system(tmp_path / "bin"), *arguments)
    usage = "scripts/install.sh [--light | --architectures LIST] [EXTRA,...], with a LIST as in 86,120"
    assert (done.returncode, done.stderr) == (2, f"error: usage: {usage}\n")


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--architectures", "87,121"], ["cmake.define.SALA_ARCHITECTURES=87,121"]),
        (["--architectures", "120", "torch"], ["cmake.define.SALA_ARCHITECTURES=120"]),
        (["--light"], ["cmake.define.SALA_PLUGINS=OFF"]),
        ([], []),
    ],
)
def test_what_is_asked_for_reaches_the_build(arguments: list[str], settings: list[str], tmp_path: Path) -> None:
    programs = tmp_path / "checkout" / ".venv" / "bin"
    programs.mkdir(parents=True)
    asked = tmp_path / "asked"
    for name in ("pip", "python"):
        line = f'if [ "$1" = -m ]; then echo "$@" >>{asked}; exit; fi; exec {sys.executable} "$@"'
        (programs / name).write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    tools = {name: f'exec {shutil.which(name)} "$@"' for name in ("mkdir", "rm", "tail", "tr")}
    tools["sleep"] = f"exec {shutil.which('sleep')} 0.2"
    done = install(tmp_path / "checkout", system(tmp_path / "bin", cxx="", **tools), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    told = asked.read_text(encoding="utf-8").splitlines()[-1].split()
    build = f"build-dir={tmp_path}/checkout/build/native"
    given = [told[at + 1] for at, word in enumerate(told) if word == "--config-settings"]
    assert [setting for setting in given if "CMAKE_CXX_COMPILER" not in setting] == [*settings, build]
