"""The graph foretold from the config is the one that an export gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint

from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.graph import read_graph
from sala_export.onnx.export import export_graph
from sala_export.planned_graph import planned_graph
from sala_export.specs import Precision


@pytest.mark.parametrize(
    ("precision", "layers"),
    [(Precision.BF16, None), (Precision.FP32, 2), (Precision.FP8, 2), (Precision.INT4, 2), (Precision.NVFP4, 2)],
)
def test_planned_graph_is_the_exported_one(tmp_path: Path, precision: Precision, layers: int | None) -> None:
    stored = precision if precision.is_quantized else Precision.BF16
    checkpoint = Checkpoint.open(tiny_checkpoint(precision=stored), layers=layers)
    export_graph(checkpoint, tmp_path, precision)
    found, planned = read_graph(tmp_path), planned_graph(checkpoint.config, precision)
    for exported, foretold in zip(found.operators, planned.operators, strict=True):
        assert (exported.name, exported.op_type) == (foretold.name, foretold.op_type)
        assert exported.attributes == pytest.approx(foretold.attributes, rel=1e-7)
    assert replace(found, path=planned.path, operators=planned.operators) == planned
