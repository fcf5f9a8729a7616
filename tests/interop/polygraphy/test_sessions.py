"""Polygraphy's runner and command line on graphs of a bundle, compared with the runtime."""

from __future__ import annotations

import ast
import io
import tomllib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import RunResults
from polygraphy.datatype import DataType
from polygraphy.exception import PolygraphyException
from polygraphy.tools._main import main
from support.bundles import copy_bundle, tiny_bundle
from support.checkpoints import tiny_checkpoint
from support.documents import ROOT
from support.runtime_bundles import tiny_cpu_bundle, write_cpu_bundle

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.interop.polygraphy.session import SessionFromSalaOnnx
from sala_export.interop.polygraphy.step_data import StepDataLoader

TOKENS, PAST = 5, 70
Capture = pytest.CaptureFixture[str]


def graph(name: str) -> str:
    return str(tiny_cpu_bundle() / "graph" / name)


def polygraphy(*arguments: str) -> tuple[int, str]:
    """Run Polygraphy's command line: exit code and output."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = main(list(arguments))
    return int(status or 0), output.getvalue()


def step_script(folder: Path, *options: str) -> str:
    path = folder / "step.py"
    assert run(["polygraphy-script", str(tiny_cpu_bundle()), "-o", str(path), *options]) == 0
    return str(path)


def answer(name: str, loader: StepDataLoader) -> dict[str, Any]:
    with OnnxrtRunner(SessionFromSalaOnnx(graph(name))) as runner:
        loader.input_metadata = runner.get_input_metadata(use_numpy_dtypes=False)
        return dict(runner.infer(OrderedDict(loader[0])))


@pytest.mark.parametrize(("name", "math", "tolerance"), [("cpu.onnx", "exact", 1e-5), ("cpu_fast.onnx", "fast", 0.05)])
def test_answer_of_the_runner_is_that_of_the_runtime(name: str, math: str, tolerance: float) -> None:
    loader = StepDataLoader(str(tiny_cpu_bundle()), tokens=TOKENS, past=PAST, seed=3)
    found = answer(name, loader)["logits"]
    ids = np.random.default_rng(3).integers(0, 512, PAST + TOKENS).tolist()
    session = sala_export.load(tiny_cpu_bundle(), cpu_math=math).session()
    session.prefill(ids[:PAST])
    expected = session.prefill(ids[PAST:], logits="all")
    assert found.shape == (TOKENS, 512)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_command_line_runs_parts_with_the_bundle_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, part, outputs = step_script(tmp_path, "--tokens", "4"), str(tmp_path / "part.onnx"), tmp_path / "out.json"
    names = ["hidden_states.1", "past_key_values.1.state", "past_length", "context_length", "rope_cos_sin"]
    extract = ["surgeon", "extract", graph("cpu.onnx"), "-o", part, "--outputs", "hidden_states.2:auto"]
    assert polygraphy(*extract, "--inputs", *(f"{name}:auto:auto" for name in names))[0] == 0
    command = ["run", part, "--sala", "--data-loader-script", script]
    status, told = polygraphy(*command)
    assert status == 1
    assert f"[!] {part} takes its weights from a bundle, model.layers.1.self_attn.q_proj.weight first: " in told
    assert "Traceback" not in told

    command += ["--sala-bundle", str(tiny_cpu_bundle())]
    status, told = polygraphy(*command, "--save-outputs", str(outputs))
    assert status == 0, told
    ((runner, (found,)),) = RunResults.load(str(outputs))
    assert (runner, found["hidden_states.2"].shape) == ("sala-part", (1, 4, 256))
    assert np.isfinite(found["hidden_states.2"]).all()

    monkeypatch.chdir(tmp_path)  # files of its own appear there
    reduced, debug = str(tmp_path / "reduced.onnx"), str(tmp_path / "debug.onnx")
    options = ["--no-reduce-inputs", "--no-shape-inference", "--iter-artifact", debug]
    check = ["--check", "sh", "-c", f"! grep -q LightningAttention {debug}"]
    status, told = polygraphy("debug", "reduce", graph("cpu.onnx"), "-o", reduced, *options, *check)
    assert status == 0, told
    kinds = [node.op_type for node in onnx.load(reduced).graph.node]
    assert kinds[-1] == "LightningAttention"


def test_command_line_shows_values_inside_a_graph(tmp_path: Path) -> None:
    """Also those of the exact graph agree with an export in fp32, which holds its weights."""
    exported = tmp_path / "graph"
    export = ["export", "--model", str(tiny_checkpoint()), "--precision", "fp32", "-o", str(exported)]
    assert run(export) == 0
    script, saved = step_script(tmp_path), str(tmp_path / "saved.json")
    command = ["--sala", "--data-loader-script", script, "--onnx-outputs", "hidden_states.3", "logits"]
    status, told = polygraphy("run", graph("cpu.onnx"), *command, "--save-outputs", saved)
    assert status == 0, told
    compared = ["--load-outputs", saved, "--check-error-stat", "max", "--atol", "1e-3"]
    status, told = polygraphy("run", str(exported / "model.onnx"), *command, *compared)
    assert status == 0, told
    assert "sala-model vs. sala-cpu | Passed: 1/1" in told


def test_polygraphy_finds_the_runner_by_its_entry_point() -> None:
    """The installed one. If this fails after an update, install the package again."""
    (found,) = {each.value for each in entry_points(group="polygraphy.run.plugins") if each.name == "sala"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["polygraphy.run.plugins"] == {"sala": found}


def no_graph(folder: Path) -> SessionFromSalaOnnx:
    (folder / "text.onnx").write_text("no graph", encoding="utf-8")
    return SessionFromSalaOnnx(str(folder / "text.onnx"))


def foreign_operator(folder: Path) -> SessionFromSalaOnnx:
    model = onnx.load(graph("cpu.onnx"))
    model.graph.node[-1].op_type = "Unheard"
    return SessionFromSalaOnnx(lambda: model, bundle=str(tiny_cpu_bundle()))


def graph_with_its_weights(folder: Path) -> SessionFromSalaOnnx:
    """In bf16, which ONNX Runtime does not compute with."""
    return SessionFromSalaOnnx(str(tiny_bundle("rtx") / "graph" / "model.onnx"))


def without_weights(folder: Path) -> SessionFromSalaOnnx:
    bundle = write_cpu_bundle(tiny_checkpoint(), folder / "light.sala", include_weights=False)
    return SessionFromSalaOnnx(str(bundle / "graph" / "cpu.onnx"))


def damaged_weights(folder: Path) -> SessionFromSalaOnnx:
    bundle = copy_bundle(tiny_cpu_bundle(), folder / "damaged.sala")
    shard = sorted(bundle.glob("graph/*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    return SessionFromSalaOnnx(str(bundle / "graph" / "cpu.onnx"))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (no_graph, r"text\.onnx is no ONNX graph$"),
        (lambda folder: SessionFromSalaOnnx(str(folder / "missing.onnx")), r"missing\.onnx: No such file"),
        (foreign_operator, r"the graph: ONNX Runtime cannot run it, take cpu\.onnx, .*Unheard"),
        (graph_with_its_weights, r"model\.onnx: ONNX Runtime cannot run it, take cpu\.onnx, "),
        (without_weights, r"light\.sala was built with --no-weights"),
        (damaged_weights, r"has another SHA-256 than bundle\.json says"),
    ],
)
def test_graph_that_cannot_run_is_one_line(make: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(PolygraphyException, match=line) as raised:
        make(tmp_path)()
    assert "\n" not in str(raised.value).strip()


def test_inputs_have_the_types_that_are_asked_for() -> None:
    loader = StepDataLoader(str(tiny_cpu_bundle()), tokens=3, past=40)
    state, stream, weight = "past_key_values.1.state", "hidden_states.2", "model.norm.weight"
    loader.input_metadata = {
        "input_ids": (DataType.INT64, ("batch", "tokens")),
        "past_key_values.0.key": (DataType.BFLOAT16, ("batch", 2, "capacity", 64)),
        state: (DataType.FLOAT32, ("batch", 32, 64, 64)),
        stream: (DataType.FLOAT16, ("batch", "tokens", 256)),
    }
    found = loader[0]
    assert found.keys() == loader.input_metadata.keys()
    assert found["past_key_values.0.key"].dtype == torch.bfloat16
    assert found["past_key_values.0.key"].shape == (1, 2, 43, 64)
    assert float(found["past_key_values.0.key"][:, :, :40].float().abs().min(dim=-1).values.max()) > 0
    assert np.abs(found[state]).max() > 0
    assert (found[stream].dtype, found[stream].shape) == (np.float16, (1, 3, 256))
    assert weight not in found


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"tokens": 0}, "tokens 0, past 0: expected at least 1 and 0"),
        ({"tokens": 1025}, "tokens: 1025, but .* takes at most 1024"),
        ({"tokens": 24, "past": 1001}, "tokens and past together: 1025, but .* takes at most 1024"),
    ],
)
def test_step_that_does_not_fit_is_one_line(sizes: dict[str, int], line: str) -> None:
    with pytest.raises(PolygraphyException, match=line):
        StepDataLoader(str(tiny_cpu_bundle()), **sizes)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["BUNDLE", "-o", "OUT/step.txt"], "give the script a name that ends with .py"),
        (["BUNDLE", "-o", "OUT/there.py"], "there.py exists: choose another place, or replace it with --force"),
        (["OUT/none.sala", "-o", "OUT/step.py"], "none.sala"),
    ],
)
def test_script_that_cannot_be_written_is_one_line(
    options: Sequence[str], line: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "there.py").write_text("mine", encoding="utf-8")
    places = [part.replace("BUNDLE", str(tiny_cpu_bundle())).replace("OUT", str(tmp_path)) for part in options]
    assert run(["polygraphy-script", *places]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]


def test_script_names_the_bundle_and_the_step(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_cpu_bundle(), tmp_path / "it's.sala")
    assert run(["polygraphy-script", str(bundle), "-o", str(tmp_path / "step.py"), "--tokens", "2", "--seed", "9"]) == 0
    text = (tmp_path / "step.py").read_text(encoding="utf-8")
    assert {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)} == {
        *("load_data", "load_network", "load_config")
    }
    names: dict[str, Any] = {}
    exec(text, names)
    (inputs,) = names["load_data"]()
    expected = np.random.default_rng(9).integers(0, Bundle.open(bundle).manifest.model.config.vocab_size, (1, 2))
    np.testing.assert_array_equal(inputs["input_ids"], expected)
