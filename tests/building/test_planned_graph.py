"""The graph planned from the config is the one that an export gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint

from sala_export.building.planned_graph import planned_graph
from sala_export.checkpoint.presets import PRESETS
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.graph import EngineGraph
from sala_export.engine.graph_reader import read_graph
from sala_export.onnx.engine_form import ENGINE_GRAPH_FILE, export_engine_graph
from sala_export.specs import QUANTIZED_PRECISIONS, Precision


def exported(checkpoint: Checkpoint, folder: Path, precision: Precision) -> EngineGraph:
    export_engine_graph(checkpoint, folder, precision)
    return read_graph(folder / ENGINE_GRAPH_FILE)


@pytest.mark.parametrize(("precision", "layers"), [(Precision.BF16, None), (Precision.FP16, 2)])
def test_planned_graph_is_the_exported_one(tmp_path: Path, precision: Precision, layers: int | None) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(), layers=layers)
    require_equal(exported(checkpoint, tmp_path, precision), planned_graph(checkpoint.config, precision))


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_planned_graph_of_a_quantised_model_is_the_exported_one(tmp_path: Path, precision: Precision) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    found = exported(checkpoint, tmp_path, precision)
    require_equal(found, planned_graph(checkpoint.config, precision, checkpoint.quantization))
    require_equal(found, planned_graph(checkpoint.config, precision))


def test_scales_for_each_channel_take_no_other_inputs(tmp_path: Path) -> None:
    source = write_quantized_checkpoint(tmp_path / "source", Precision.INT8, layers=1, per_channel=True)
    checkpoint = Checkpoint.open(source)
    require_equal(exported(checkpoint, tmp_path, Precision.INT8), planned_graph(checkpoint.config, Precision.INT8))


@pytest.mark.parametrize(
    ("precision", "weights", "constants"),
    [
        # 8.338e9 weights of projections, 1.139e9 others in 16 bits.
        (Precision.BF16, 18.954, 0.0),
        (Precision.FP8, 10.616, 0.0),
        # Its gates are quantised too.
        (Precision.MXFP8, 10.357, 0.0),
        (Precision.INT4, 6.577, 8.338 * (4 + 16 / 128) / 8),
        (Precision.NVFP4, 6.968, 8.338 / 16),
    ],
)
def test_gigabytes_of_9b_are_where_the_form_puts_them(precision: Precision, weights: float, constants: float) -> None:
    graph = planned_graph(PRESETS["9b"].config, precision)
    # Scales of products, 4 bytes for each output feature, come on top.
    assert graph.weights_bytes / 1e9 == pytest.approx(weights, rel=1e-3)
    assert graph.constant_bytes / 1e9 == pytest.approx(constants, rel=1e-3)
    assert graph.widest_projection == 2 * 16384


def require_equal(found: EngineGraph, planned: EngineGraph) -> None:
    for exported_node, planned_node in zip(found.operators, planned.operators, strict=True):
        assert (exported_node.name, exported_node.op_type) == (planned_node.name, planned_node.op_type)
        assert exported_node.attributes == pytest.approx(planned_node.attributes, rel=1e-7)
    assert replace(found, path=planned.path, operators=planned.operators, product_operators=()) == planned
