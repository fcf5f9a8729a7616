"""The scripts for `trtexec` and `tensorrt_rtx`, run with a tool that only writes down what it was called with."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import copy_bundle, tiny_bundle

from sala_export.bundle.manifest import Manifest
from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.engine.trtexec import write_tool_scripts
from sala_export.errors import UnsupportedError
from sala_export.installation import plugin_library
from sala_export.model.rope import rope_cos_sin

Capture = pytest.CaptureFixture[str]
Calls = dict[str, tuple[str, dict[str, list[str]]]]

DOCUMENTED = {
    "trtexec": {
        *(
            "onnx",
            "minShapes",
            "optShapes",
            "maxShapes",
            "profilingVerbosity",
            "stronglyTyped",
            "saveEngine",
            "loadEngine",
        ),
        *("maxAuxStreams", "profile", "shapes", "loadInputs", "skipInference", "useProfile", "dynamicPlugins"),
        "noDataTransfers",
    }
}
"""Options that `trtexec --help` of TensorRT 10.5 lists."""
DOCUMENTED["tensorrt_rtx"] = DOCUMENTED["trtexec"] - {"stronglyTyped"} | {"computeCapabilities"}
"""The guide of TensorRT for RTX names the option with compute capabilities such as 75,80. Its networks are always
strongly typed."""

TOOL = "import json, pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write(json.dumps(sys.argv[2:]) + chr(10))"
LENGTHS = ("past_length", "context_length")
SIZES = {"int64": 8, "int32": 4, "float32": 4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose path a shell must not take apart."""
    return copy_bundle(tiny_bundle("rtx"), tmp_path_factory.mktemp("a folder's $HOME") / "tiny.sala")


def called(scripts: list[Path], folder: Path) -> Calls:
    """What each script calls: the tool and the values of each option, in order."""
    log = folder / "calls.jsonl"
    for name in DOCUMENTED:
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{TOOL}" "{log}" {name} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    for script in scripts:
        subprocess.run([str(script), "--dumpProfile"], check=True, env={"PATH": f"{folder}:{os.environ['PATH']}"})
    found: Calls = {}
    for script, line in zip(scripts, log.read_text(encoding="utf-8").splitlines(), strict=True):
        tool_name, *arguments, last = json.loads(line)
        assert last == "--dumpProfile"
        options: dict[str, list[str]] = {}
        for argument in arguments:
            name, _, value = argument.removeprefix("--").partition("=")
            options.setdefault(name, []).append(value)
        found[script.stem] = (tool_name, options)
    return found


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    pairs = (part.split(":") for part in text.split(","))
    return {name: tuple(map(int, shape.split("x"))) for name, shape in pairs}


def bounds(manifest: Manifest, profile: str, bound: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a profile, from the manifest's ranges."""
    sizes = {symbol: getattr(sizes, bound) for symbol, sizes in manifest.engine.profiles[profile].items()}
    return {
        spec.name: tuple(each if isinstance(each, int) else sizes[each] for each in spec.shape)
        for spec in manifest.graph.inputs
    }


def test_scripts_say_what_the_engine_was_built_with(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out"
    assert run(["trtexec", str(bundle), "-o", str(output)]) == 0
    scripts = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert scripts == [output / "build.sh", output / "prefill.sh", output / "decode.sh"]
    calls = called(scripts, tmp_path)
    for tool, options in calls.values():
        assert tool == "tensorrt_rtx"
        assert options.keys() <= DOCUMENTED[tool]
    manifest = Bundle.open(bundle).manifest
    options = calls["build"][1]
    assert options["onnx"] == [str(bundle / "engine" / "engine.onnx")]
    assert all(options["dynamicPlugins"] == [str(plugin_library())] for _, options in calls.values())
    assert options["computeCapabilities"] == ["86,89,120"]
    assert options["profile"] == ["0", "1"]
    for bound in ("min", "opt", "max"):
        for index, profile in enumerate(("prefill", "decode")):
            assert shapes(options[f"{bound}Shapes"][index]) == bounds(manifest, profile, bound)
    for index, profile in enumerate(("prefill", "decode")):
        timed = calls[profile][1]
        assert (timed["useProfile"], timed["loadEngine"]) == ([str(index)], options["saveEngine"])
        assert shapes(timed["shapes"][0]) == bounds(manifest, profile, "opt")

    assert run(["trtexec", str(bundle), "-o", str(output)]) == 2
    assert "exists: choose another place" in capsys.readouterr().err
    assert run(["trtexec", str(bundle), "-o", str(output), "--force"]) == 0


def test_inputs_are_those_of_a_step(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    scripts = write_tool_scripts(manifest, bundle, plugin_library(), tmp_path)
    calls = called(list(scripts), tmp_path)
    types = {spec.name: spec.dtype.value for spec in manifest.graph.inputs}
    for profile, past in (("prefill", 0), ("decode", 16383)):
        files = dict(part.split(":") for part in calls[profile][1]["loadInputs"][0].split(","))
        arrays = {}
        for name, shape in bounds(manifest, profile, "opt").items():
            if name.startswith("past_key_values."):
                assert name not in files
                continue
            content = (tmp_path / files[name]).read_bytes()
            assert len(content) == math.prod(shape) * SIZES[types[name]]
            arrays[name] = np.frombuffer(content, types[name]).reshape(shape)
        tokens = arrays["input_ids"].shape[1]
        assert 0 <= arrays["input_ids"].min() <= arrays["input_ids"].max() < manifest.model.config.vocab_size
        assert (arrays["past_length"], arrays["context_length"]) == (past, past + tokens)
        assert arrays["logit_rows"].tolist() == [tokens - 1]
        positions = torch.arange(past, past + tokens)[None]
        expected = rope_cos_sin(positions, torch.tensor(manifest.model.inv_freq, dtype=torch.float32))
        np.testing.assert_allclose(arrays["rope_cos_sin"], expected.numpy(), rtol=0, atol=1e-7)


def test_context_sizes_caches_and_inputs_together(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["trtexec", str(bundle), "-o", str(tmp_path / "out"), "--context"]
    for wrong in ("8", "32K"):
        assert run([*command, wrong]) == 2
        assert capsys.readouterr().err.endswith("this engine takes 64 to 16384 tokens\n")
        assert not (tmp_path / "out").exists()
    assert run([*command, "1000"]) == 0
    calls = called([tmp_path / "out" / f"{name}.sh" for name in ("prefill", "decode")], tmp_path)
    for name, tokens, past in (("prefill", 1000, 0), ("decode", 1, 999)):
        sizes = shapes(calls[name][1]["shapes"][0])
        assert sizes["input_ids"] == (1, tokens)
        assert sizes["past_key_values.0.key"][2] == 1000
        assert sizes["past_key_values.0.k1"][2] == (1000 - 32) // 16 + 1
        lengths = [np.fromfile(tmp_path / "out" / name / f"{each}.bin", np.int32)[0] for each in LENGTHS]
        assert lengths == [past, past + tokens]


def test_bundle_of_tensorrt_proper_gets_trtexec(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    other = replace(manifest, engine=replace(manifest.engine, tensorrt_flavour="tensorrt"))
    tool, options = called(list(write_tool_scripts(other, bundle, plugin_library(), tmp_path)), tmp_path)["build"]
    assert tool == "trtexec"
    assert options["stronglyTyped"] == [""]
    assert options.keys() <= DOCUMENTED[tool]


def test_engine_whose_constants_the_graph_lacks_is_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    tensors = {name: replace(tensor, fixed=True) for name, tensor in manifest.weights.tensors.items()}
    fixed = replace(manifest, weights=replace(manifest.weights, tensors=tensors))
    with pytest.raises(UnsupportedError, match=r"constants that engine/engine\.onnx leaves out"):
        write_tool_scripts(fixed, bundle, plugin_library(), tmp_path)
    assert list(tmp_path.iterdir()) == []
