"""Weights that a tool stores in another order: the file that `export` writes for them, and what needs it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from safetensors import safe_open
from support.foreign_checkpoints import awq, gptq

from sala_export.building.pipeline import build_bundle, export_onnx
from sala_export.building.requests import BuildRequest, ModelRequest
from sala_export.checkpoint.converted_file import CONVERTED_FILE
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.recipe import load_target
from sala_export.engine.request import EngineRequest
from sala_export.errors import RequestError
from sala_export.specs import Precision


def test_export_writes_one_more_file_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    path = awq(tmp_path / "foreign").path
    for name in ("first", "second"):
        export_onnx(ModelRequest(model=str(path)), tmp_path / name, Precision.INT4)
    first = tmp_path / "first" / CONVERTED_FILE
    assert first.read_bytes() == (tmp_path / "second" / CONVERTED_FILE).read_bytes()
    expected = {name for name in Checkpoint.open(path).tensors() if name.endswith(("weight_packed", "weight_scale"))}
    with safe_open(first, framework="pt") as file:
        assert {*file.keys()} == expected
    onnx.checker.check_model(tmp_path / "first" / "model.onnx")


def test_bundle_without_weights_is_refused(tmp_path: Path) -> None:
    path = gptq(tmp_path / "foreign").path
    engine = EngineRequest.from_options(load_target("rtx5090"), precision="int4", max_context=1024, prefill_chunk=512)
    request = BuildRequest(
        model=ModelRequest(model=str(path)), engine=engine, output=tmp_path / "it.sala", include_weights=False
    )
    with pytest.raises(RequestError, match=r"--no-weights: .*foreign has its weights in another order than graphs"):
        build_bundle(request)
