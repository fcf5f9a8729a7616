"""The program `sala-run`: token ids in, token ids out; built with sanitizers."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.native_runtime import sanitized_build
from support.runtime_bundles import tiny_cpu_bundle

from sala_export.installation import onnxruntime_operators
from sala_export.runtime.model import Model, _wheel_library

IDS = np.random.default_rng(0).integers(3, 512, 150)


def sala_run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sanitized_build() / "sala-run", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def libraries() -> list[object]:
    return [
        "--runtime",
        "onnxruntime",
        "--onnxruntime",
        _wheel_library(),
        "--operators",
        onnxruntime_operators(),
        "--threads",
        2,
    ]


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(map(str, IDS)) + "\n")
    return path


def test_generates_what_python_generates(model: Model, prompt: Path) -> None:
    options = ("--max-new-tokens", 8, "--temperature", 0.9, "--top-p", 0.95, "--seed", 4, "--json")
    done = sala_run(tiny_cpu_bundle(), "--tokens", prompt, *options, *libraries())
    assert done.returncode == 0, done.stderr
    session = model.session()
    session.prefill(IDS)
    tokens = list(session.generate_tokens(max_new_tokens=8, temperature=0.9, top_p=0.95, seed=4))
    expected = {"finish_reason": session.finish_reason, "prompt_tokens": 150, "tokens": tokens}
    assert json.loads(done.stdout) == expected
    assert "prefill 150/150 tokens" in done.stderr


def test_state_passes_between_python_and_cpp(model: Model, prompt: Path, tmp_path: Path) -> None:
    session = model.session()
    session.prefill(IDS)
    session.save(tmp_path / "python.state")
    states = ("--load-state", tmp_path / "python.state", "--save-state", tmp_path / "cpp.state")
    done = sala_run(tiny_cpu_bundle(), *states, "--max-new-tokens", 4, *libraries())
    assert done.returncode == 0, done.stderr
    both = list(session.generate_tokens(max_new_tokens=7))
    restored = model.restore(tmp_path / "cpp.state")
    assert [*map(int, done.stdout.split()), *restored.generate_tokens(max_new_tokens=3)] == both


def test_ids_come_from_standard_input(prompt: Path) -> None:
    from_pipe = sala_run(
        tiny_cpu_bundle(), "--tokens", "-", "--max-new-tokens", 3, *libraries(), stdin=" ".join(map(str, IDS))
    )
    from_file = sala_run(tiny_cpu_bundle(), "--tokens", prompt, "--max-new-tokens", 3, *libraries())
    assert from_pipe.returncode == 0, from_pipe.stderr
    assert from_pipe.stdout == from_file.stdout
    assert len(from_pipe.stdout.split()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "the bundle is missing", id="no bundle"),
        pytest.param(["b"], "--tokens is missing", id="no tokens"),
        pytest.param(["b", "c", "--tokens", "-"], "'c' is too much", id="two bundles"),
        pytest.param(["b", "--tokens"], "--tokens needs a value", id="no value"),
        pytest.param(["b", "--tokens", "-", "--maxtokens", "3"], "unknown option --maxtokens", id="unknown option"),
        pytest.param(["b", "--tokens", "-", "--seed", "x"], "--seed: 'x'", id="no number"),
        pytest.param(["b", "--tokens", "-", "--top-k", "3.5"], "--top-k: '3.5'", id="no whole number"),
        pytest.param(
            ["b", "--tokens", "-", "--runtime", "cuda"],
            "runtime 'cuda' is unknown: choose auto, tensorrt or onnxruntime",
            id="no runtime",
        ),
        pytest.param(["missing.sala", "--tokens", "-"], "BundleMissing: missing.sala", id="no such bundle"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    done = sala_run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("ids", "message"),
    [("", "EmptyPrompt"), ("1 2x 3", "'2x' is not a token id"), ("1 512", "TokenOutOfRange"), ("1 " * 70, "64")],
)
def test_wrong_ids_are_refused(ids: str, message: str) -> None:
    done = sala_run(tiny_cpu_bundle(), "--tokens", "-", "--max-context", 64, *libraries(), stdin=ids)
    assert done.returncode == 2
    assert message in done.stderr


def test_interrupt_ends_it_between_chunks_without_a_state(prompt: Path, tmp_path: Path) -> None:
    options = ["--tokens", prompt, "--chunk-tokens", 1, "--save-state", tmp_path / "a.state", *libraries()]
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # A slow load of the weights reports first.
        lines = itertools.dropwhile(lambda line: line.startswith("weights "), process.stderr)
        assert next(lines).startswith("prefill 1/150 tokens")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == [prompt.name]


def test_help_names_every_option() -> None:
    done = sala_run("--help")
    assert done.returncode == 0
    options = {word for word in done.stdout.split() if word.startswith("--")}
    assert options == {
        *("--chunk-tokens", "--help", "--json", "--load-state", "--max-context", "--max-new-tokens", "--onnxruntime"),
        *("--operators", "--repetition-penalty", "--save-state", "--seed", "--temperature", "--threads", "--tokens"),
        *("--no-decode-graph", "--runtime", "--runtime-cache", "--tensorrt", "--top-k", "--top-p", "--verify-hashes"),
        "--weights",
    }
