"""A light installation, without what builds and quantises, runs a bundle, and names what other commands need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bundles import tiny_bundle
from support.checkpoints import tiny_checkpoint
from support.imports import REPOSITORY, run_without
from support.text_bundles import tiny_text_bundle

from sala_export.extras import PACKAGE_EXTRAS

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

ANSWER = ["generate", "BUNDLE", "--prompt", "Hello", "--max-new-tokens", "2"]
NAMES: dict[str, Callable[[], Path]] = {
    "BUNDLE": tiny_text_bundle,
    "BUNDLE_WITH_ENGINE": lambda: tiny_bundle("rtx"),
    "CHECKPOINT": tiny_checkpoint,
}
"""What stands for a path in the commands below."""


def light(command: list[str], folder: Path, *, extra: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `sala-export` without the packages of the extras, but for those of `extra`."""
    program = ["-c", "from sala_export.cli.start import main; main()"]
    places = NAMES | {"OUT": lambda: folder / "out"}
    arguments = [str(places[part]()) if part in places else part for part in command]
    missing = [package for package, brought_by in PACKAGE_EXTRAS.items() if brought_by != extra]
    return run_without([*missing, "matplotlib", "safetensors"], [*program, *arguments], folder / "missing")


@pytest.mark.parametrize(
    "command",
    [
        ANSWER,
        ["bench", "BUNDLE", "--context", "16", "--new-tokens", "2"],
        ["inspect", "--verify", "BUNDLE_WITH_ENGINE"],
        ["random-checkpoint", "OUT", "--preset", "tiny"],
        ["plan", "--gpu", "cpu", "--memory", "16G", "--bandwidth", "40"],
    ],
)
def test_commands_that_a_light_installation_has(command: list[str], tmp_path: Path) -> None:
    done = light(command, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["build", "--gpu", "rtx"], "build"),
        (["build", "--gpu", "cpu"], "onnx"),
        (["build", "--gpu", "cpu", "--model", "CHECKPOINT"], "onnx"),
        (["export", "--model", "CHECKPOINT", "-o", "OUT"], "onnx"),
        (["plan", "--gpu", "rtx5090"], "build"),
        (["polygraphy-script", "BUNDLE", "-o", "step.py"], "polygraphy"),
        (["serve", "BUNDLE"], "serve"),
        (["verify", "BUNDLE"], "torch"),
        (["generate", "CHECKPOINT", "--runtime", "torch", "--prompt", "Hello"], "torch"),
    ],
)
def test_command_names_the_extra_that_it_needs(command: list[str], extra: str, tmp_path: Path) -> None:
    done = light(command, tmp_path)
    pattern = rf"error: this needs the package \w+, which is not installed: pip install 'sala-export\[{extra}\]'\n"
    assert re.fullmatch(pattern, done.stderr)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_bundle_for_cpus_takes_one_extra_and_runs_without_it(tmp_path: Path) -> None:
    built = light(["build", "--gpu", "cpu", "--model", "CHECKPOINT", "-o", "OUT"], tmp_path, extra="onnx")
    assert built.returncode == 0, built.stderr
    (tmp_path / "again").mkdir()
    answer = [*ANSWER, "--cpu-math", "fast"]
    answer[1] = str(tmp_path / "out")
    answered = light(answer, tmp_path / "again")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()


def test_a_server_that_builds_an_engine_names_the_extra_of_engines(tmp_path: Path) -> None:
    done = light(["serve", "CHECKPOINT", "--gpu", "rtx5090"], tmp_path, extra="serve")
    assert "pip install 'sala-export[build]'" in done.stderr


@pytest.mark.parametrize("code", ["sala_export.load('out', runtime='torch')", "sala_export.SalaForCausalLM"])
def test_python_names_the_extra_too(code: str, tmp_path: Path) -> None:
    done = run_without(PACKAGE_EXTRAS, ["-c", f"import sala_export; {code}"], tmp_path / "missing")
    assert "UnsupportedError: this needs the package torch, which is not installed: pip install" in done.stderr


def test_harness_of_tasks_is_an_extra_too(tmp_path: Path) -> None:
    done = run_without(PACKAGE_EXTRAS, ["-m", "sala_export.interop.lm_eval", "--help"], tmp_path / "missing")
    line = "error: this needs the package lm_eval, which is not installed: pip install 'sala-export[eval]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_another_missing_module_is_no_matter_of_extras(tmp_path: Path) -> None:
    code = "from sala_export.extras import extras_named\nwith extras_named():\n    import no_such_module"
    done = run_without([], ["-c", code], tmp_path / "missing")
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stderr


def test_extras_bring_what_they_are_named_for() -> None:
    names = {
        "lm_eval": "lm-eval",
        "onnx_ir": "onnx-ir",
        "prometheus_client": "prometheus-client",
        "tensorrt_rtx": "tensorrt-rtx-cu13",
    }
    extras = PROJECT["optional-dependencies"]
    for package, extra in PACKAGE_EXTRAS.items():
        wanted = [*extras[extra], *(extras["gpu"] if "sala-export[gpu]" in extras[extra] else [])]
        assert any(re.match(rf"{names.get(package, package)}\b", need) for need in wanted), package
        assert not any(re.match(rf"{package}\b", need) for need in PROJECT["dependencies"])


@pytest.mark.release
def test_light_installation_answers(tmp_path: Path) -> None:
    """A wheel without plugins, in an environment that has nothing else, fetched from the package index."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    setting = ["-C", "cmake.define.SALA_PLUGINS=OFF"]
    wheel = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", *setting, "--wheel-dir", str(tmp_path)]
    subprocess.run(wheel, cwd=REPOSITORY, check=True)
    subprocess.run([python, "-m", "pip", "install", *tmp_path.glob("*.whl")], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|triton|onnx|tensorrt\S*) ", listed, re.MULTILINE)
    answer = [python.with_name("sala-export"), ANSWER[0], tiny_text_bundle(), *ANSWER[2:]]
    done = subprocess.run(answer, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip()
