"""scripts/gpu_pack.sh and the unpack.sh that it packs: what they refuse, list and put in place.

Nothing is built or fetched here: test_gpu_pack_release.py makes a whole pack.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PACK = SCRIPTS / "gpu_pack.sh"
UNPACK = SCRIPTS / "gpu_unpack.sh"
WHEELS = SCRIPTS / "gpu_pack_wheels.txt"
MODULE = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"

Completed = subprocess.CompletedProcess[str]


def bash(script: str, *arguments: str | Path, cwd: Path, path: str = "") -> Completed:
    """Run a line of bash; `path` comes first on PATH."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]},
    )


def assert_refused(done: Completed, problem: str) -> None:
    assert done.returncode == 2
    assert re.fullmatch(f"error: {problem}\n", done.stderr), done.stderr


# --- Packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--python"], ["--fast"], ["one", "two"], ["one", "--python"]])
def test_wrong_arguments_are_answered_with_the_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = bash(f'{PACK} "$@"', *arguments, cwd=tmp_path)
    assert_refused(done, r"usage: scripts/gpu_pack\.sh DIR \[--python PYTHON\]")


def test_folder_of_somebody_else_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "CONTENTS.txt").write_text("my letters\n")
    done = bash(f'{PACK} "$1"', foreign, cwd=tmp_path)
    assert_refused(done, rf"{foreign} exists, and this script did not make it: choose another folder, or delete it")
    assert [(path.name, path.read_text()) for path in foreign.iterdir()] == [("CONTENTS.txt", "my letters\n")]


def test_python_of_another_version_is_refused(tmp_path: Path) -> None:
    done = bash(f"{PACK} pack --python /bin/false", cwd=tmp_path)
    assert_refused(done, "/bin/false is no Python 3.12")
    assert not list(tmp_path.iterdir())


def test_missing_python_is_told_with_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3.12").chmod(0o755)
    done = bash(f"HOME=$PWD {PACK} pack", cwd=tmp_path, path=str(tmp_path))
    assert_refused(done, r"there is no Python 3\.12: get one \(.*\) and give it as --python")


def finish(contents: Path, target: Path) -> Completed:
    return bash(f'source {PACK}; finish "$1" "$2"', contents, target, cwd=contents.parent)


def contents_in(folder: Path, **sizes: int) -> Path:
    """A folder with files of these sizes, which take no room on the disk."""
    contents = folder / "pack.partial"
    contents.mkdir()
    for name, size in sizes.items():
        with (contents / name).open("wb") as file:
            file.truncate(size)
    return contents


def test_contents_are_listed_with_sizes_and_replace_an_earlier_pack(tmp_path: Path) -> None:
    target = tmp_path / "pack"
    assert finish(contents_in(tmp_path, old=3), target).returncode == 0
    done = finish(contents_in(tmp_path, big=50_000_000, small=7), target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (target / "CONTENTS.txt").read_text()
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["50000000", "big"],
        ["7", "small"],
        ["50000007", "bytes", "in", "all"],
    ]
    assert sorted(path.name for path in target.iterdir()) == ["CONTENTS.txt", "big", "small"]
    assert list(tmp_path.iterdir()) == [target]


def test_pack_that_is_too_large_to_travel_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "pack"
    assert finish(contents_in(tmp_path, old=3), target).returncode == 0
    done = finish(contents_in(tmp_path, big=60_000_000, small=1), target)
    assert done.returncode == 2
    assert "    60000000  big\n" in done.stderr
    assert done.stderr.endswith("error: these are 60000001 bytes, more than the 60000000 that may travel\n")
    assert (target / "old").exists()


def test_folder_of_somebody_else_is_not_replaced_at_the_end_either(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    done = finish(contents_in(tmp_path, small=1), tmp_path / "pack")
    assert_refused(done, r"\S+/pack exists, and this script did not make it: .*")


def test_every_wheel_is_pinned_and_agrees_with_the_project() -> None:
    pins = [line for line in WHEELS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", pin) for pin in pins)
    project = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]
    assert next(pin for pin in pins if pin.startswith("fla-core")) in project["optional-dependencies"]["test"]


# --- Unpacking --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack for the Python of this test, with one wheel."""
    pack = tmp_path / "a pack"
    package = pack / "native" / "sala_export"
    for folder in (pack / "wheels", package / "lib", package / "runtime"):
        folder.mkdir(parents=True)
    (pack / "unpack.sh").write_text(UNPACK.read_text())
    (pack / "commit.txt").write_text("0123abcd+\n")
    (package / "lib" / "libsala_plugins.so").write_text("plugins")
    (package / "runtime" / MODULE).write_text("native")
    with zipfile.ZipFile(pack / "wheels" / "lacking-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lacking.py", "value = 1\n")
        wheel.writestr("lacking-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: lacking\nVersion: 1\n")
        wheel.writestr("lacking-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("lacking-1.dist-info/RECORD", "lacking.py,,\n")
    return pack


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Where packs are unpacked: as much of a checkout as unpack.sh looks at."""
    checkout = tmp_path / "checkout"
    (checkout / "sala_export" / "runtime").mkdir(parents=True)
    (checkout / "sala_export" / "installation.py").touch()
    return checkout


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A folder with a `python3` that is the Python of this test."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python3").chmod(0o755)
    return str(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_unpacking_puts_everything_in_place_and_may_be_repeated(pack: Path, checkout: Path, programs: str) -> None:
    target = checkout / "site"
    seen = []
    for _ in range(2):
        done = bash('bash "$1" "$2"', pack / "unpack.sh", "site", cwd=checkout, path=programs)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].startswith("unpacked commit 0123abcd+; ")
        assert done.stdout.splitlines()[-1] == f"export PYTHONPATH={target}"
        seen.append(files_of(checkout))
    assert seen[0] == seen[1]
    assert (target / "lacking.py").read_text() == "value = 1\n"
    package = checkout / "sala_export"
    assert files_of(package) == {
        "lib/commit.txt": b"0123abcd+\n",
        "lib/libsala_plugins.so": b"plugins",
        "installation.py": b"",
        f"runtime/{MODULE}": b"native",
    }


def test_sourcing_sets_the_path_of_the_shell(pack: Path, checkout: Path, programs: str) -> None:
    script = 'source "$1" && python3 -c "import lacking; print(lacking.value)"'
    done = bash(script, pack / "unpack.sh", cwd=checkout, path=programs)
    assert done.stdout.splitlines()[-1] == "1", done.stderr
    assert (checkout / "build" / "gpu-site" / "lacking.py").exists()


@pytest.mark.parametrize("way", ["bash {} site", "source {} || exit"])
def test_another_python_is_refused(pack: Path, checkout: Path, programs: str, way: str) -> None:
    module = pack / "native" / "sala_export" / "runtime" / MODULE
    module.rename(module.with_name("_native.cpython-399-x86_64-linux-gnu.so"))
    before = files_of(checkout)
    done = bash(way.format('"$1"'), pack / "unpack.sh", cwd=checkout, path=programs)
    assert_refused(done, rf"this pack is for _native\.cpython-399-\S+, python3 here takes {re.escape(MODULE)}")
    assert files_of(checkout) == before


def test_folder_that_is_no_checkout_is_refused(pack: Path, tmp_path: Path, programs: str) -> None:
    done = bash('bash "$1" site', pack / "unpack.sh", cwd=tmp_path, path=programs)
    assert_refused(done, rf"{tmp_path} is not the root of sala-export: go there first")
