"""The graph foretold from the config is the one that an export gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint
from support.quantized_graphs import quantized_graph

from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.graph import EngineGraph, read_graph
from sala_export.onnx.export import export_graph
from sala_export.planned_graph import planned_graph
from sala_export.specs import QUANTIZED_PRECISIONS, Precision


@pytest.mark.parametrize(("precision", "layers"), [(Precision.BF16, None), (Precision.FP32, 2)])
def test_planned_graph_is_the_exported_one(tmp_path: Path, precision: Precision, layers: int | None) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(), layers=layers)
    export_graph(checkpoint, tmp_path, precision)
    require_equal(read_graph(tmp_path), planned_graph(checkpoint.config, precision))


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_planned_graph_of_a_quantised_model_is_the_exported_one(precision: Precision) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    found = read_graph(quantized_graph(precision))
    require_equal(found, planned_graph(checkpoint.config, precision, checkpoint.quantization))
    require_equal(found, planned_graph(checkpoint.config, precision))
    assert found.weights_bytes == checkpoint.weight_bytes() - scalar_bytes(checkpoint)


def scalar_bytes(checkpoint: Checkpoint) -> int:
    """Scales per tensor lie beside weights, and in the graph itself."""
    return sum(4 for weight in checkpoint.quantized.values() if weight.scale_shape == (1, 1))


def require_equal(found: EngineGraph, planned: EngineGraph) -> None:
    for exported, foretold in zip(found.operators, planned.operators, strict=True):
        assert (exported.name, exported.op_type) == (foretold.name, foretold.op_type)
        assert exported.attributes == pytest.approx(foretold.attributes, rel=1e-7)
    assert replace(found, path=planned.path, operators=planned.operators) == planned
