"""What TensorRT makes of the engine's graph: the kernels of real builds, by its own reports.

Four layers of published size, which take no weights to build where these are inputs; else two layers that are narrower.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.unwritten_checkpoint import unwritten_checkpoint, write_quantized_weights

from sala_export.building.planned_graph import planned_graph, planned_memory
from sala_export.checkpoint.presets import PRESETS
from sala_export.checkpoint.quantization import SCHEMES, Quantization
from sala_export.checkpoint.reader import Checkpoint
from sala_export.engine.build import build_engine
from sala_export.engine.recipe import load_target
from sala_export.engine.report import PLUGIN_LAYER, PRODUCT_LAYERS, EngineReport
from sala_export.engine.request import EngineRequest
from sala_export.installation import plugin_library
from sala_export.onnx.engine_form import ENGINE_GRAPH_FILE, export_engine_graph
from sala_export.specs import Precision

BUILDS = [
    ("a6000", Precision.BF16),
    ("a6000", Precision.FP16),
    ("a6000", Precision.INT8),
    ("a6000", Precision.INT4),
    ("rtx5090", Precision.BF16),
    ("rtx5090", Precision.FP16),
    ("rtx5090", Precision.FP8),
    ("rtx5090", Precision.INT8),
    ("rtx5090", Precision.INT4),
    ("rtx5090", Precision.NVFP4),
    ("rtx", Precision.BF16),
    ("rtx", Precision.INT8),
]
TYPES = {
    # TensorRT's types of a product's input and weight.
    Precision.BF16: ("BFloat16", "BFloat16"),
    Precision.FP16: ("Half", "Half"),
    Precision.FP8: ("FP8", "FP8"),
    Precision.INT8: ("Int8", "Int8"),
    Precision.INT4: ("BFloat16", "Int4"),
    Precision.NVFP4: ("FP4E2M1", "FP4E2M1"),
}
KERNELS = {
    # In a layer with its operator: each product, norm and silu(gate) * up; where inputs are quantised, o_proj's too;
    # with a gate of its own, its product and the concatenation. In nvfp4 TensorRT brings scales into its own order.
    Precision.BF16: 8,
    Precision.FP16: 8,
    Precision.FP8: 11,
    Precision.INT8: 11,
    Precision.INT4: 10,
    Precision.NVFP4: 18,
    # Two norms, four products, the operator, and what quantises its rows and those of silu(gate) * up.
    Precision.MXFP8: 9,
}
OTHERS = 4
"""The sizes, the last row, the norm of it and lm_head; the embedding is part of the first norm."""
HAS_CONSTANTS = (Precision.INT4, Precision.NVFP4)
EMBEDDING = "model.embed_tokens.weight"

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-layer-reports-")


def checkpoint_of(precision: Precision) -> Checkpoint:
    config, file = PRESETS["9b"].config.truncated(4), Path(_FOLDER.name) / f"{precision}.weights"
    if precision not in HAS_CONSTANTS:
        return unwritten_checkpoint(config, precision, file)
    narrow = replace(config.truncated(2), hidden_size=1024, intermediate_size=2048)
    checkpoint = unwritten_checkpoint(narrow, precision, file)
    if not file.stat().st_size:
        write_quantized_weights(checkpoint)
    return checkpoint


def request_of(gpu: str, precision: Precision) -> EngineRequest:
    return EngineRequest.from_options(load_target(gpu), precision=precision, max_context=65536, prefill_chunk=2048)


@functools.cache
def built(gpu: str, precision: Precision) -> EngineReport:
    folder = Path(_FOLDER.name) / f"{gpu}-{precision}"
    folder.mkdir()
    export_engine_graph(checkpoint_of(precision), folder, precision)
    return build_engine(request_of(gpu, precision), folder / ENGINE_GRAPH_FILE, plugin_library(), folder)


def layers_of(report: EngineReport) -> int:
    return len(report.operators)


def quantized_products(report: EngineReport) -> dict[str, str]:
    """Products of a quantised checkpoint by module, with the weight of each."""
    projections = {
        "self_attn.qkv_proj": "self_attn.q_proj+k_proj+v_proj",
        "self_attn.o_proj": "self_attn.o_proj",
        "mlp.gate_up_proj": "mlp.gate_proj+up_proj",
        "mlp.down_proj": "mlp.down_proj",
    }
    return {
        f"layers.{layer}.{module}": f"model.layers.{layer}.{weight}.weight"
        for layer in range(layers_of(report))
        for module, weight in projections.items()
    }


def plain_products(report: EngineReport, precision: Precision) -> dict[str, str]:
    """Products in 16 bits by module, with the weight of each."""
    found = {"lm_head": "lm_head.weight"}
    for operator in report.operators:
        layer = operator.name.partition(".self_attn")[0]
        gate, short = ("z_proj", "z") if operator.op_type == "LightningAttention" else ("o_gate", "g")
        if precision.is_quantized:
            found[f"{layer}.self_attn.{gate}"] = f"model.{layer}.self_attn.{gate}.weight"
            continue
        found[f"{layer}.self_attn.qkv{short}_proj"] = f"model.{layer}.self_attn.q_proj+k_proj+v_proj+{gate}.weight"
        found[f"{layer}.self_attn.o_proj"] = f"model.{layer}.self_attn.o_proj.weight"
        found[f"{layer}.mlp.gate_up_proj"] = f"model.{layer}.mlp.gate_proj+up_proj.weight"
        found[f"{layer}.mlp.down_proj"] = f"model.{layer}.mlp.down_proj.weight"
    return found


def type_beside(precision: Precision) -> Precision:
    """In which the products are that are not quantised."""
    return Precision.FP16 if precision is Precision.FP16 else Precision.BF16


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_every_product_is_one_kernel_in_its_type(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    plain = plain_products(report, precision)
    quantized = quantized_products(report) if precision.is_quantized else {}
    for profile in (0, 1):
        products = {name.rpartition("/")[0]: layer for name, layer in report.product_layers(profile).items()}
        assert products.keys() == {**plain, **quantized}.keys()
        for module, layer in products.items():
            of_input, of_weight = TYPES[precision if module in quantized else type_beside(precision)]
            assert layer.type in PRODUCT_LAYERS, (profile, module)
            assert of_input in {tensor.dtype for tensor in report.activations_of(layer)}, (profile, module)
            weights = report.weights_of(layer)
            assert of_weight in {tensor.dtype for tensor in weights}, (profile, module)
            if precision is not Precision.INT4 or module in plain:
                assert weights[0].name == {**plain, **quantized}[module], (profile, module)


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_no_kernel_but_its_product_reads_a_weight(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    matrices = {spec.name for spec in report.weights if len(spec.shape) == 2 and 1 not in spec.shape}
    assert len(matrices) == 2 + layers_of(report) * {Precision.BF16: 4, Precision.FP16: 4, Precision.INT4: 1}.get(
        precision, 5
    )
    for profile in (0, 1):
        readers: Counter[str] = Counter()
        products = {id(layer) for layer in report.product_layers(profile).values()}
        for layer in report.layers:
            if layer.profile != profile:
                continue
            read = [tensor.name for tensor in layer.inputs if tensor.name in matrices]
            readers.update(read)
            assert not read or id(layer) in products or read == [EMBEDDING], (profile, layer.name)
        assert readers == dict.fromkeys(matrices, 1)


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_layers_take_no_more_kernels_than_their_parts(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    for profile in (0, 1):
        names = [layer.name for layer in report.layers if layer.profile == profile]
        assert len(names) <= layers_of(report) * KERNELS[precision] + OTHERS, names
        assert len(report.layers_of(profile, PLUGIN_LAYER)) == layers_of(report)


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_engine_is_code_and_what_must_be_constant_once(gpu: str, precision: Precision) -> None:
    report = built(gpu, precision)
    per_weight = {Precision.INT4: 0.5 + 2 / 128, Precision.NVFP4: 1 / 16}.get(precision, 0.0)
    # TensorRT pads each constant to 256 bytes, and scales of nvfp4 to tiles of 128 rows.
    padded = report.quantized_parameters * (per_weight + 0.01) if per_weight else 1 << 18
    assert report.quantized_parameters * per_weight <= report.constant_bytes < padded
    assert report.plan_bytes - report.constant_bytes < 15 << 20
    assert report.peak_host_bytes < 1 << 30


@pytest.mark.parametrize(("gpu", "precision"), BUILDS)
def test_estimate_of_activations_is_an_upper_one(gpu: str, precision: Precision) -> None:
    report, checkpoint = built(gpu, precision), checkpoint_of(precision)
    graph = planned_graph(checkpoint.config, precision, checkpoint.quantization)
    predicted = planned_memory(graph, checkpoint.config, request_of(gpu, precision))
    assert report.memory.activation_bytes <= predicted.activation_bytes


def test_layers_of_mxfp8_are_operators_of_this_project_alone() -> None:
    report, checkpoint = built("rtx5090", Precision.MXFP8), checkpoint_of(Precision.MXFP8)
    matrices = {spec.name for spec in report.weights if len(spec.shape) == 2 and 1 not in spec.shape}
    assert len(matrices) == 2 + 4 * (4 + 4), "codes and scales of four products in a layer"
    for profile in (0, 1):
        operators = report.operator_layers(profile)
        assert {name: len(nodes) for name, nodes in operators.items()} == {
            "LightningAttention": 3,
            "InfLLMv2Attention": 1,
            "RMSNormBlockQuantize": 8,
            "BlockScaledLinear": 8,
            "BlockQuantize": 8,
            "BlockScaledLinearAdd": 8,
        }
        layers = [layer for layer in report.layers if layer.profile == profile]
        assert len(layers) <= 4 * KERNELS[Precision.MXFP8] + OTHERS + 1, [layer.name for layer in layers]
        readers = Counter(tensor.name for layer in layers for tensor in layer.inputs if tensor.name in matrices)
        assert readers == dict.fromkeys(matrices, 1)
    assert report.constant_bytes < 1 << 18
    graph = planned_graph(checkpoint.config, Precision.MXFP8, checkpoint.quantization)
    predicted = planned_memory(graph, checkpoint.config, request_of("rtx5090", Precision.MXFP8))
    assert report.memory.activation_bytes <= predicted.activation_bytes


@pytest.mark.parametrize("kept", ["z_proj|o_gate", "k_proj", "up_proj", "down_proj"])
def test_estimate_of_activations_holds_beside_products_in_16_bits(kept: str, tmp_path: Path) -> None:
    config, precision = PRESETS["9b"].config.truncated(4), Precision.MXFP8
    quantization = Quantization(scheme=SCHEMES[precision], ignore=(f"re:.*({kept})", "lm_head"))
    checkpoint = unwritten_checkpoint(config, precision, tmp_path / "weights", quantization)
    export_engine_graph(checkpoint, tmp_path, precision)
    request = request_of("rtx5090", precision)
    report = build_engine(request, tmp_path / ENGINE_GRAPH_FILE, plugin_library(), tmp_path)
    predicted = planned_memory(planned_graph(config, precision, quantization), config, request)
    assert report.memory.activation_bytes <= predicted.activation_bytes < 1.4 * report.memory.activation_bytes


@pytest.mark.parametrize(("batch", "chunk"), [(8, 2048), (64, 32)])
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
def test_batches_take_memory_for_decode_steps_alone(
    precision: Precision, batch: int, chunk: int, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(precision)
    request = replace(request_of("a6000", precision), max_batch=batch, prefill_chunk=chunk)
    export_engine_graph(checkpoint, tmp_path, precision)
    report = build_engine(request, tmp_path / ENGINE_GRAPH_FILE, plugin_library(), tmp_path)
    prefill, decode = report.activation_bytes
    if chunk == 2048:
        assert prefill == built("a6000", precision).activation_bytes[0], "a step of one session"
    assert (decode > prefill) is (batch > chunk)
    graph = planned_graph(checkpoint.config, precision, checkpoint.quantization)
    predicted = planned_memory(graph, checkpoint.config, request)
    assert report.memory.activation_bytes <= predicted.activation_bytes
    for profile in (0, 1):
        assert len(report.layers_of(profile, PLUGIN_LAYER)) == layers_of(report)
