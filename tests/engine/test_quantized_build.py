"""Engines of quantised models: which products run in which type, and how many bytes a weight takes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_graphs import quantized_graph

from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.build import build_engine
from sala_export.engine.recipe import load_recipe
from sala_export.engine.report import EngineReport
from sala_export.engine.request import EngineRequest
from sala_export.native_libraries import plugin_library
from sala_export.onnx.export import export_graph
from sala_export.planned_graph import planned_memory
from sala_export.specs import Precision

BUILDS = [
    ("rtx5090", Precision.FP8),
    ("rtx5090", Precision.INT8),
    ("rtx5090", Precision.INT4),
    ("rtx5090", Precision.NVFP4),
    ("a6000", Precision.INT8),
    ("a6000", Precision.INT4),
]
TYPES = {
    # Precision: TensorRT's types of a product's input and weight.
    Precision.FP8: ("FP8", "FP8"),
    Precision.INT8: ("Int8", "Int8"),
    Precision.INT4: ("BFloat16", "Int4"),
    Precision.NVFP4: ("FP4E2M1", "FP4E2M1"),
}
BYTES = {Precision.FP8: 1.0, Precision.INT8: 1.0, Precision.INT4: 0.5 + 2 / 128, Precision.NVFP4: 0.5 + 1 / 16}
ROLES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-quantized-engines-")


@functools.cache
def built(gpu: str, precision: Precision) -> EngineReport:
    request = EngineRequest.from_options(load_recipe(gpu), precision=precision, max_context=4096, prefill_chunk=256)
    stem = Path(_FOLDER.name) / f"{gpu}-{precision}"
    return build_engine(
        request,
        quantized_graph(precision),
        stem.with_suffix(".plan"),
        log_path=stem.with_suffix(".log"),
        plugin_library=plugin_library(),
    )


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_products_run_in_the_quantised_type(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    assert report.precision is precision
    of_input, of_weight = TYPES[precision]
    for profile in (0, 1):
        layers = report.product_layers(profile)
        assert {layer.type for layer in layers.values()} <= {"gemm", "runtime_fusion", "kgen"}
        for name in (f"layers.{layer}.{role}/MatMul" for layer in (0, 1) for role in ROLES):
            product = layers[name]
            # Products of int4 weights with one row may be generated code, in so small a model.
            assert product.type != "kgen" or (precision is Precision.INT4 and profile == 1), name
            assert of_input in {tensor.dtype for tensor in product.inputs}, (profile, name)
            assert of_weight in {tensor.dtype for tensor in product.constants}, (profile, name)
            assert {tensor.dtype for tensor in product.outputs} == {"BFloat16"}, (profile, name)
        for gate in ("layers.0.self_attn.o_gate/MatMul", "layers.1.self_attn.z_proj/MatMul"):
            assert {tensor.dtype for tensor in layers[gate].inputs} == {"BFloat16"}
            assert "BFloat16" in {tensor.dtype for tensor in layers[gate].constants}


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_every_quantised_weight_is_stored_once_for_both_profiles(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    others = report.graph_weights_bytes - report.graph_quantized_weights_bytes
    assert report.quantized_parameters == 3_997_696
    assert report.graph_quantized_weights_bytes / report.quantized_parameters == pytest.approx(BYTES[precision])
    # TensorRT pads each constant to 256 bytes, and scales of nvfp4 to tiles of 128 rows.
    stored = (report.memory.weights_bytes - others) / report.quantized_parameters
    assert BYTES[precision] <= stored < BYTES[precision] + 0.01


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_estimate_of_activations_is_an_upper_one(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    request = EngineRequest.from_options(
        load_recipe(gpu), precision=precision, max_context=report.max_context, prefill_chunk=report.prefill_chunk
    )
    predicted = planned_memory(Checkpoint.open(tiny_checkpoint(2, precision)).config, request)
    assert report.memory.activation_bytes <= predicted.activation_bytes
    assert report.memory.io_bytes == predicted.io_bytes


def test_scales_per_channel_leave_the_product_in_fp32_and_cost_no_weight_bytes(tmp_path: Path) -> None:
    source = write_quantized_checkpoint(tmp_path / "source", Precision.INT8, layers=1, per_channel=True)
    export_graph(Checkpoint.open(source), tmp_path, Precision.INT8)
    report = build_engine(
        EngineRequest.from_options(load_recipe("a6000"), precision="int8", max_context=4096, prefill_chunk=256),
        tmp_path,
        tmp_path / "engine.plan",
        log_path=tmp_path / "engine.log",
        plugin_library=plugin_library(),
    )
    for profile in (0, 1):
        for role in ROLES:
            product = report.product_layers(profile)[f"layers.0.{role}/MatMul"]
            assert product.type == "gemm"
            assert product.inputs[0].dtype == product.constants[0].dtype == "Int8"
            assert product.outputs[0].dtype == "Float"
    others = report.graph_weights_bytes - report.graph_quantized_weights_bytes
    assert 1 <= (report.memory.weights_bytes - others) / report.quantized_parameters < 1.02
