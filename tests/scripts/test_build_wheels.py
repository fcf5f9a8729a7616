"""scripts/build_wheels.py: what it refuses at once, and before a release what its wheels do."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_wheels.py"
PLATFORM = "manylinux_2_28"


def build_wheels(*arguments: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the script where PATH and the home directory hold nothing else than `path` does."""
    command = [sys.executable, SCRIPT, *arguments]
    environ = {"PATH": str(path), "HOME": str(path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def fake_python(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("lines", ["exit 1", "echo 3.10", "echo; echo /usr/bin/python3.11"])
def test_python_that_is_missing_or_unfit_is_told_with_how_to_get_one(lines: str, tmp_path: Path) -> None:
    unfit = fake_python(tmp_path / "python3.11", lines)
    done = build_wheels("--output", tmp_path / "dist", path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: there is no Python 3.11 that can build a wheel: type `pyenv install 3.11`, or `uv python install 3.11` "
        "and give it as --python. Debian's has headers in two parts\n"
    )
    assert list(tmp_path.iterdir()) == [unfit]


@pytest.mark.parametrize("given", ["none", "unfit"])
def test_python_that_is_given_is_taken_or_refused_by_name(given: str, tmp_path: Path) -> None:
    fake_python(tmp_path / "unfit", "echo 3.10; echo unfit")
    done = build_wheels("--python", tmp_path / given, path=tmp_path)
    line = f"error: {tmp_path / given} cannot build a wheel: give a Python 3.11, 3.12, 3.13 of pyenv or uv\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize("is_debian", [True, False])
def test_headers_of_debian_are_found_unfit(is_debian: bool, tmp_path: Path) -> None:
    """This Python itself, with other headers."""
    include = tmp_path / "include"
    include.mkdir()
    text = "# include <x86_64-linux-gnu/python3.11/pyconfig.h>" if is_debian else "#define HAVE_UNISTD_H 1"
    (include / "pyconfig.h").write_text(text, encoding="utf-8")
    replaced = f"import sysconfig; sysconfig.get_path = lambda name: {str(include)!r}; exec(open(0).read())"
    program = fake_python(tmp_path / "python", f"printf '%s' \"$2\" | exec {sys.executable} -c {replaced!r}")
    done = build_wheels("--python", program, path=tmp_path)
    assert (f"{program} cannot build a wheel" in done.stderr) is is_debian


def test_output_that_cannot_be_written_is_told_before_anything_is_built(tmp_path: Path) -> None:
    pythons = []
    for version in ("3.11", "3.12", "3.13"):
        fit = fake_python(tmp_path / f"fit{version}", f"echo {version}; echo {tmp_path}/fit{version}")
        pythons += ["--python", str(fit)]
    (tmp_path / "dist").write_text("a letter", encoding="utf-8")
    done = build_wheels(*pythons, "--output", tmp_path / "dist", path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'dist'} cannot be written to: File exists: give another --output\n"
    assert (tmp_path / "dist").read_text(encoding="utf-8") == "a letter"


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_tags_of_a_wheel_are_those_of_its_processor(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend is loaded without scikit-build-core, which only builds have."""
    said: list[str | None] = []

    def build_wheel(*_: Any) -> None:
        said.extend(map(os.environ.get, ("_PYTHON_HOST_PLATFORM", "SETUPTOOLS_EXT_SUFFIX")))

    backend = SimpleNamespace(build_wheel=build_wheel)
    monkeypatch.setitem(sys.modules, "scikit_build_core", SimpleNamespace(build=backend))
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", backend)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: f".cpython-311-{os.uname().machine}-linux-gnu.so")
    spec = importlib.util.spec_from_file_location("sala_build", ROOT / "cmake" / "sala_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build_wheel("out", {})
    module.build_wheel("out", {"cmake.define.SALA_PROCESSOR": processor})
    assert said == [None, None, f"linux-{processor}", f".cpython-311-{processor}-linux-gnu.so"]


def test_wheels_carry_kernels_that_there_are() -> None:
    module = runpy.run_path(str(SCRIPT))
    assert module["ARCHITECTURES"]["x86_64"] == AOT_ARCHITECTURES
    assert set(module["ARCHITECTURES"]["aarch64"]) <= ARCHITECTURES.keys()


def test_trial_takes_the_steps_of_the_quickstart() -> None:
    text = (SCRIPT.parent / "quickstart.sh").read_text(encoding="utf-8").replace('"$out/', "").replace('"', "")
    module = runpy.run_path(str(SCRIPT))
    for _, *arguments in (*module["BUILD"], module["ANSWER"][0]):
        assert " ".join(arguments) in text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script builds for this processor and this Python."""
    dist = tmp_path_factory.mktemp("wheels") / "dist"
    subprocess.run([sys.executable, SCRIPT, "--processor", platform.machine(), "--output", dist], check=True)
    tag = f"{PLATFORM}_{platform.machine()}.whl"
    names = sorted(path.name.split("-", 2)[2] for path in dist.glob("*.whl"))
    assert names == [f"cp311-cp311-{tag}", f"cp312-abi3-{tag}"]
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (built,) = dist.glob("*-cp311-cp311-*" if sys.version_info < (3, 12) else "*-cp312-abi3-*")
    return built


@pytest.mark.release
def test_libraries_of_a_wheel_have_no_unwinder_of_their_own(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    libraries = {*tmp_path.glob("sala_export/**/*.so")} - {tmp_path / "sala_export/lib/libtensorrt_rtx.so"}  # no code
    assert len(libraries) == 3
    for library in libraries:
        command = ["readelf", "--wide", "--dyn-syms", library]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.search(r" UND _Unwind_RaiseException\b", symbols), library


@pytest.mark.release
def test_operators_of_a_wheel_pass_their_tests(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    tests = [path for path in (ROOT / "tests" / "plugins").glob("test_*_cpu.py") if "sanitizers" not in path.name]
    assert len(tests) == 5
    command = [sys.executable, "-m", "pytest", "-q", "--operators", tmp_path / "sala_export" / "lib" / "libsala_ort.so"]
    subprocess.run([*command, *sorted(tests)], cwd=ROOT, check=True)


@pytest.mark.release
def test_runtime_of_a_wheel_passes_its_tests(wheel: Path, tmp_path: Path) -> None:
    """In an environment with the wheel and all else that this one has, and a checkout whose package is the wheel's."""
    environment, checkout = tmp_path / "environment", tmp_path / "checkout"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", wheel], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    for other in Path(sysconfig.get_path("platlib")).iterdir():
        if "sala_export" not in other.name and not (packages / other.name).exists():
            (packages / other.name).symlink_to(other)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.strip("\0").split("\0"):
        if not name.startswith("sala_export/"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    (checkout / "sala_export").symlink_to(packages / "sala_export")
    environ = os.environ | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    subprocess.run([python, "-m", "pytest", "-q", "tests/runtime"], cwd=checkout, env=environ, check=True)
