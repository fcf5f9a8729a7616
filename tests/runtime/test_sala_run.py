"""The program `sala-run`: token ids in, token ids out; built with sanitizers."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_runtime import sanitized_build
from support.runtime_bundles import tiny_cpu_bundle

from sala_export.cli.output import JSON_SCHEMA_VERSION
from sala_export.installation import VERSION, onnxruntime_library, onnxruntime_operators
from sala_export.runtime.model import Model

SIGNALS = [
    each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN
]
"""Those that end a program, unless whoever runs the tests has them ignored, as `nohup` does."""


IDS = np.random.default_rng(0).integers(3, 512, 150)


def sala_run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sanitized_build() / "sala-run", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def libraries() -> list[object]:
    return [
        "--runtime",
        "onnxruntime",
        "--onnxruntime",
        onnxruntime_library(),
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
    assert json.loads(done.stdout) == {"schema_version": JSON_SCHEMA_VERSION, **expected}
    assert "prefill 150/150 tokens" in done.stderr


def test_penalties_count_the_answer_across_states_of_both_languages(model: Model, prompt: Path, tmp_path: Path) -> None:
    state = tmp_path / "a.state"
    session = model.session()
    session.prefill(IDS)
    sampling: dict[str, Any] = {"frequency_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": {9: 4.0}, "min_p": 0.1}
    sampling |= {"temperature": 1.2, "seed": 3, "stop_tokens": []}
    expected = list(session.generate_tokens(max_new_tokens=12, **sampling))
    options = [*("--frequency-penalty", 1.5, "--presence-penalty", 0.5, "--logit-bias", "9=4", "--min-p", 0.1)]
    options += ["--temperature", 1.2, "--seed", 3, "--max-new-tokens", 4, "--save-state", state, "--json"]
    first = sala_run(tiny_cpu_bundle(), "--tokens", prompt, *options, *libraries())
    restored = model.restore(state)
    middle = list(restored.generate_tokens(max_new_tokens=4, **sampling))
    restored.save(state)
    last = sala_run(tiny_cpu_bundle(), "--load-state", state, *options, *libraries())
    assert [*json.loads(first.stdout)["tokens"], *middle, *json.loads(last.stdout)["tokens"]] == expected
    assert len(expected) == 12


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
        pytest.param(
            ["b", "--tokens=-", "--maxtokens=3"], "unknown option --maxtokens (", id="unknown option with value"
        ),
        pytest.param(["b", "-v"], "unknown option -v", id="unknown letter"),
        pytest.param(["b", "-hv"], "unknown option -v", id="unknown letter of two"),
        pytest.param(["b", "--json=1"], "--json takes no value", id="flag with a value"),
        pytest.param(["b", "--js=1"], "--json takes no value", id="short flag with a value"),
        pytest.param(["b", "--top", "1"], "--top can mean --top-k or --top-p", id="beginning of two options"),
        pytest.param(["b", "--seed="], "--seed: ''", id="empty value"),
        pytest.param(["--", "--json", "b"], "'b' is too much", id="bundle that looks like an option"),
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


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_it_between_chunks_and_saves_what_had_run(
    model: Model, prompt: Path, tmp_path: Path, number: signal.Signals
) -> None:
    state = tmp_path / "a.state"
    options = ["--tokens", prompt, "--chunk-tokens", 1, "--save-state", state, *libraries()]
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # A slow load of the weights reports first.
        lines = itertools.dropwhile(lambda line: line.startswith("weights "), process.stderr)
        assert next(lines).startswith("prefill 1/150 tokens")
        process.send_signal(number)
        *_, saved = lines
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert process.returncode == 128 + number
    position = model.restore(state).position
    assert (
        saved == f"sala-run: saved the {position} tokens that had run to {state}: continue with --load-state {state}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.state", prompt.name]


def test_signal_while_it_waits_for_ids_ends_it(tmp_path: Path) -> None:
    options = ["--tokens", "-", "--save-state", str(tmp_path / "a.state"), *map(str, libraries())]
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        *_, told = process.stderr
    assert process.returncode == 128 + signal.SIGTERM
    assert "no new tokens had run" in told
    assert list(tmp_path.iterdir()) == []


def test_signal_while_nobody_takes_its_output_saves_what_had_run(model: Model, prompt: Path, tmp_path: Path) -> None:
    state = tmp_path / "a.state"
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), "--tokens", prompt, "--save-state", state]
    reading, writing = os.pipe()
    os.write(writing, bytes(fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)))  # no room for an id
    options = list(map(str, [*command, *libraries()]))
    with subprocess.Popen(options, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("prefill 150/150"))
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
            *_, saved = process.stderr
        finally:
            os.close(writing)
            os.close(reading)  # ends a process that still waits
    position = model.restore(state).position
    assert f"saved the {position} tokens that had run" in saved


def test_output_that_cannot_be_written_is_named_and_the_state_saved(prompt: Path, tmp_path: Path) -> None:
    state = tmp_path / "a.state"
    options = ["--tokens", prompt, "--max-new-tokens", 4, "--save-state", state, *libraries()]
    with Path("/dev/full").open("w") as full:
        command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), *map(str, options)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    *_, saved, error = done.stderr.splitlines()
    assert "saved the 151 tokens" in saved
    assert "standard output cannot be written: No space left on device" in error


def test_ends_in_one_line_where_its_weights_are_cut_short(prompt: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_cpu_bundle(), tmp_path / "cut.sala"))
    weights = min((bundle / "graph").glob("*.safetensors"))
    command = [sanitized_build() / "sala-run", bundle, "--tokens", prompt, "--max-new-tokens", 1 << 20, *libraries()]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        os.truncate(weights, 4096)
        _, told = process.communicate(timeout=60)
    last = told.decode().splitlines()[-1]
    assert f"BundleDamaged: {weights} was cut short while it was mapped: it has 4096 bytes of" in last
    assert process.returncode == 2


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_full_output_fails_the_run(prompt: Path, json_too: tuple[str, ...]) -> None:
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), "--tokens", prompt, *json_too, *libraries()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*map(str, command), "--max-new-tokens", "1"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "standard output" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "nan"], "--temperature: 'nan'"),
        (["--cpu-math", "quick"], "--cpu-math: 'quick'"),
        (["--temperature", "-2"], "temperature is -2"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--min-p", "1.5"], "min_p is 1.5"),
        (["--frequency-penalty", "3"], "frequency_penalty is 3"),
        (["--presence-penalty", "-2.5"], "presence_penalty is -2.5"),
        (["--logit-bias", "7"], "--logit-bias: '7'"),
        (["--logit-bias", "-7=1"], "--logit-bias: '-7=1'"),
        (["--logit-bias", "7=1x"], "--logit-bias: '7=1x'"),
        (["--logit-bias", "7=101"], "logit_bias of token 7 is 101"),
        (["--logit-bias", "7=1", "--logit-bias", "7=2"], "--logit-bias: '7=2'"),
        (["--seed", str(2**64)], "--seed"),
        (["--top-k", str(2**63)], "--top-k"),
        (["--max-new-tokens", str(2**63)], "--max-new-tokens"),
        (["--max-new-tokens", "-1"], "--max-new-tokens: '-1'"),
        (["--max-context", "0"], "--max-context: '0'"),
        (["--chunk-tokens", "-3"], "--chunk-tokens: '-3'"),
        (["--load-state", "no.state"], "no.state cannot be opened: No such file"),
        (["--load-state", "/dev/zero"], "/dev/zero is not a file"),
        (["--save-state", "/dev/null"], "/dev/null"),
        (["--save-state", "/"], "StateUnwritable"),
        (["--tokens", "/"], "is a directory"),
        (["--seed", "\x1b[31m"], r"--seed: '\x1b[31m'"),
    ],
)
def test_wrong_options_are_refused_before_the_bundle_is_opened(options: list[str], message: str) -> None:
    done = sala_run("no bundle", "--tokens", "-", *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (b"1 " * 70_000, "more than 64 token ids"),
        (b"\0" * 200_000, "is not a token id"),
        (b"9" * 200_000, "...' is not"),
    ],
)
def test_streams_that_do_not_end_are_refused_on_the_way(ids: bytes, message: str) -> None:
    options = ["--tokens", "-", "--max-context", "64", *map(str, libraries())]
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            while True:  # until it has seen enough
                process.stdin.write(ids)
        told = process.stderr.read().decode()
        process.stdin = None
    assert process.returncode == 2
    assert message in told


def test_options_take_their_values_in_either_form(prompt: Path) -> None:
    options = ["--max-new-tokens", "3", "--temperature", "1.5", "--logit-bias", "9=-4", "--seed", "3"]
    joined = [f"{name}={value}" for name, value in zip(options[::2], options[1::2], strict=True)]
    outputs = [
        sala_run(*libraries(), f"--tokens={prompt}", *joined, "--", tiny_cpu_bundle()).stdout,
        sala_run(tiny_cpu_bundle(), "--tokens", prompt, *options, *libraries()).stdout,
        sala_run(tiny_cpu_bundle(), "--tok", prompt, *options, *libraries()).stdout,
    ]
    assert len(outputs[0].split()) == 3
    assert len(set(outputs)) == 1


def test_version_is_that_of_the_package() -> None:
    done = sala_run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sala-run {VERSION}\n", "")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_option(word: str) -> None:
    done = sala_run(word)
    assert done.returncode == 0
    options = {word for word in done.stdout.split() if word.startswith("--")}
    assert options == {
        *("--chunk-tokens", "--help", "--json", "--load-state", "--max-context", "--max-new-tokens", "--onnxruntime"),
        *("--operators", "--repetition-penalty", "--save-state", "--seed", "--temperature", "--threads", "--tokens"),
        *("--min-p", "--frequency-penalty", "--presence-penalty", "--logit-bias", "--speculation"),
        *("--no-decode-graph", "--runtime", "--runtime-cache", "--tensorrt", "--top-k", "--top-p", "--verify-hashes"),
        *("--cpu-math", "--weights", "--version", "--", "--option", "--option=VALUE."),
    }
