"""Polygraphy builds the engine of a bundle with TensorRT for RTX, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from polygraphy.datatype import DataType
from polygraphy.exception import PolygraphyException
from support.bundles import tiny_bundle

from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.interop.polygraphy.step_data import StepDataLoader


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "step.py"
    assert run(["polygraphy-script", str(tiny_bundle("rtx")), "-o", str(path)]) == 0
    return path


def test_engine_is_built_with_plugins_and_both_profiles(script: Path, tmp_path: Path) -> None:
    """In a process of its own, because Polygraphy chooses TensorRT when it is imported."""
    plan = tmp_path / "engine.plan"
    command = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())", "convert"]
    options = [str(script), "--convert-to", "trt", "--trt-config-script", str(script), "-o", str(plan)]
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 profile(s)" in done.stdout
    ours = tiny_bundle("rtx") / Bundle.open(tiny_bundle("rtx")).manifest.engine.plan
    # The plugin library and the code of all GPUs make up the plan. Nothing of that may be missing.
    assert plan.stat().st_size == pytest.approx(ours.stat().st_size, rel=0.02)


@pytest.mark.parametrize("name", ["load_network", "load_config"])
def test_the_other_tensorrt_is_one_line(name: str, script: Path) -> None:
    functions: dict[str, Any] = {}
    exec(script.read_text(encoding="utf-8"), functions)
    arguments = () if name == "load_network" else (None, None)
    line = r"is for TensorRT for RTX, and Polygraphy uses the other one: set its variable POLYGRAPHY_USE_TENSORRT_RTX=1"
    with pytest.raises(PolygraphyException, match=line):
        functions[name](*arguments)


def test_engine_gets_the_weights_that_it_takes_as_inputs() -> None:
    bundle = Bundle.open(tiny_bundle("rtx"))
    loader = StepDataLoader(str(bundle.directory), tokens=2)
    weights = {weight.spec.name: weight.spec for weight in bundle.manifest.engine.weights}
    loader.input_metadata = {name: (DataType.BFLOAT16, spec.shape) for name, spec in weights.items()}
    found = loader[0]
    assert all(found[name].shape == tuple(spec.shape) for name, spec in weights.items())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    packed = next(name for name in weights if "q_proj+k_proj" in name)
    assert float(found[packed].float().std()) > 0
