"""Graphs of other tools' quantised checkpoints: what packs of several scales and scales by token become in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.checkpoints import edit_json
from support.closeness import assert_most_rows_close
from support.engine_graphs import evaluate
from support.foreign_checkpoints import Written, awq, gptq, modelopt_fp8, modelopt_nvfp4
from support.quantized_reference import emulated_model, stored_tensors
from support.weight_inputs import assemble

from sala_export.checkpoint.keymap import weights
from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.engine_constants import scale_columns
from sala_export.onnx.engine_form import ENGINE_GRAPH_FILE, export_engine_graph
from sala_export.onnx.export import GRAPH_FILE, export_graph

Writer = Callable[..., Written]

LAYER = "model.layers.0"
BY_TOKEN = partial(modelopt_fp8, by_channel=True)
bf16_gptq = partial(gptq, scales=torch.bfloat16)


def with_exact_scales(path: Path) -> None:
    """Make the residual scale 0.5: the graph rounds it to 16 bits, the reference does not."""
    config = Checkpoint.open(path).config
    depth = 0.5 * config.scale_depth / config.residual_scale
    edit_json(path / "config.json", lambda fields: fields.update(scale_depth=depth))
    assert math.isclose(Checkpoint.open(path).config.residual_scale, 0.5)


@pytest.mark.parametrize("writer", [modelopt_fp8, BY_TOKEN, modelopt_nvfp4, bf16_gptq])
def test_engine_graph_gives_the_logits_of_a_float_copy(tmp_path: Path, writer: Writer) -> None:
    path, quantized, roundings = writer(tmp_path / "foreign")
    with_exact_scales(path)
    (tmp_path / "graph").mkdir()
    checkpoint, stored = Checkpoint.open(path), stored_tensors(path)
    written = export_engine_graph(checkpoint, tmp_path / "graph", checkpoint.quantization.precision)
    ids = torch.randint(0, 512, (5, 5), generator=torch.Generator().manual_seed(1))
    inputs = assemble(path, written.weights)
    graph, last = tmp_path / "graph" / ENGINE_GRAPH_FILE, range(4, 25, 5)
    found = evaluate(graph, checkpoint.config, written.step, inputs, ids, last)["logits"]
    plain = [weight.name for weight in weights(checkpoint.config) if weight.name not in quantized]
    values = quantized | {name: stored[name].float() for name in plain}
    with emulated_model(checkpoint.config, values, roundings) as model:
        assert_most_rows_close(found, model(ids)[:, -1])


@pytest.mark.parametrize(("writer", "products"), [(modelopt_nvfp4, 3), (modelopt_fp8, 3), (BY_TOKEN, 1), (gptq, 1)])
def test_a_pack_is_one_product_unless_its_scales_differ(tmp_path: Path, writer: Writer, products: int) -> None:
    checkpoint = Checkpoint.open(writer(tmp_path / "foreign").path)
    (tmp_path / "graph").mkdir()
    export_engine_graph(checkpoint, tmp_path / "graph", checkpoint.quantization.precision)
    graph = onnx.load(tmp_path / "graph" / ENGINE_GRAPH_FILE, load_external_data=False).graph
    modules = {f"layers.0.self_attn.{each}_proj/" for each in ("q", "k", "v", "qkv")}
    kinds = ("Gemm", "MatMul")
    found = [node for node in graph.node if node.op_type in kinds and any(node.name.startswith(m) for m in modules)]
    assert len(found) == products


def test_int4_scales_of_other_types_are_rounded_to_those_of_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = gptq(tmp_path / "foreign", scales=torch.float32, group=256).path
    checkpoint = Checkpoint.open(path)
    names = [f"{LAYER}.mlp.{role}" for role in ("gate_proj", "up_proj")]
    stored = torch.cat([stored_tensors(path)[f"{name}.scales"] for name in names], 1)
    columns = scale_columns([checkpoint.quantized[f"{name}.weight"].scale for name in names], 2)
    found = torch.from_numpy(columns).view(torch.bfloat16).view(2, -1)
    assert torch.equal(found, stored.to(torch.bfloat16).expand(2, -1))
    (tmp_path / "graph").mkdir()
    export_engine_graph(checkpoint, tmp_path / "graph", checkpoint.quantization.precision)
    assert caplog.messages == [f"{path} has scales in float32: the engine rounds them to bfloat16"]


@pytest.mark.parametrize("writer", [modelopt_fp8, BY_TOKEN, gptq, partial(gptq, group=-1), awq])
def test_graph_for_onnx_tools_holds_the_stored_weights(tmp_path: Path, writer: Writer) -> None:
    path, quantized, _ = writer(tmp_path / "foreign")
    checkpoint = Checkpoint.open(path)
    (tmp_path / "graph").mkdir()
    export_graph(checkpoint, tmp_path / "graph", checkpoint.quantization.precision)
    model = onnx.load(tmp_path / "graph" / GRAPH_FILE)
    (product,) = (node for node in model.graph.node if node.name.startswith("layers.0.mlp.down_proj/MatMul"))
    output = onnx.ValueInfoProto()
    output.name = product.input[1]
    part = onnx.utils.Extractor(model).extract_model([], [output.name])
    (found,) = ReferenceEvaluator(part).run(None, {})
    expected = quantized[f"{LAYER}.mlp.down_proj.weight"].to(torch.bfloat16).T
    # The evaluator leaves the type of the result out.
    assert torch.equal(torch.from_numpy(found.astype("float32")).to(torch.bfloat16), expected)
