"""scripts/build_wheels.py: what it refuses at once, and before a release what its wheels do."""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_wheels.py"
PLATFORM = "manylinux_2_28"


def constant(name: str) -> Any:
    """The value of a constant of the script."""
    for statement in ast.parse(SCRIPT.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    raise AssertionError(f"no constant {name}")


def build_wheels(*arguments: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the script where PATH and the home directory hold nothing else than `path` does."""
    command = [sys.executable, SCRIPT, *arguments]
    environ = {"PATH": str(path), "HOME": str(path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


@pytest.mark.parametrize("program", ["exit 1", "echo 3.10"])
def test_python_that_is_missing_or_unfit_is_told_with_how_to_get_one(program: str, tmp_path: Path) -> None:
    unfit = tmp_path / "python3.11"
    unfit.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    unfit.chmod(0o755)
    done = build_wheels("--output", tmp_path / "dist", "--python", tmp_path / "none", path=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: there is no Python 3.11 with headers: install it (pyenv install 3.11, or the system's python3.11-dev "
        "and python3.11-venv), or give it as --python\n"
    )
    assert list(tmp_path.iterdir()) == [unfit]


def test_wheels_carry_kernels_that_there_are() -> None:
    architectures = constant("ARCHITECTURES")
    assert architectures["x86_64"] == AOT_ARCHITECTURES
    assert set(architectures["aarch64"]) <= ARCHITECTURES.keys()


def test_trial_takes_the_steps_of_the_quickstart() -> None:
    text = (SCRIPT.parent / "quickstart.sh").read_text(encoding="utf-8").replace('"$out/', "").replace('"', "")
    generate = constant("ANSWER")[0]
    for _, *arguments in (*constant("BUILD"), generate):
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
def test_operators_of_a_wheel_pass_their_tests(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environ = os.environ | {"SALA_TESTED_OPERATORS": str(tmp_path / "sala_export" / "lib" / "libsala_ort.so")}
    tests = sorted((ROOT / "tests" / "plugins").glob("test_*_cpu.py"))
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, env=environ, check=True)


@pytest.mark.release
def test_runtime_of_a_wheel_passes_its_tests(wheel: Path, tmp_path: Path) -> None:
    """In an environment with the wheel and all else that this one has, and a checkout without sources."""
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
