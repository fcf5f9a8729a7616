"""scripts/build_wheels.py: what it refuses at once, and before a release the wheels themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.interpreter_end import WORKS, end_within

from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_wheels.py"


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


@pytest.mark.release
def test_wheels_of_this_processor(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--processor", "x86_64", "--output", tmp_path / "dist"], check=True)
    names = sorted(path.name.split("-", 2)[2] for path in (tmp_path / "dist").glob("*.whl"))
    assert names == ["cp311-cp311-manylinux_2_28_x86_64.whl", "cp312-abi3-manylinux_2_28_x86_64.whl"]
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    tag = "cp311-cp311" if sys.version_info < (3, 12) else "cp312-abi3"
    (wheel,) = (tmp_path / "dist").glob(f"*-{tag}-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "packages")
    for work in WORKS:  # no other unwinder than the system's is in the module
        done = end_within(work, tmp_path / "packages")
        assert (done.returncode, done.stderr) == (0, ""), work
        assert done.stdout.startswith(str(tmp_path))
