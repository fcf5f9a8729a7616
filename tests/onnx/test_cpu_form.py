"""`cpu.onnx` in ONNX Runtime: its numbers with weights as its interface describes them, and its layers one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close
from support.golden import GOLDEN_CHECKPOINT, golden
from support.graph_runner import GraphRunner
from support.opened_files import opened
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import dequantized, quantized_model, stored_tensors
from support.small_models import write_small_checkpoint
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.bundle.manifest import WeightInput, WeightPart
from sala_export.checkpoint.quantization import SCHEMES
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import ExportError
from sala_export.files import TextFile
from sala_export.installation import onnxruntime_operators
from sala_export.model.layer_run import logits as head_logits
from sala_export.onnx.cpu_form import CPU_GRAPH_FILE, CpuGraph, export_cpu_graph
from sala_export.onnx.layer_graph import write_layer
from sala_export.specs import QUANTIZED_PRECISIONS, DType, Precision, TensorSpec

SPARSE_SIZES = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 16,
    "topk": 2,
    "window_size": 32,
    "init_blocks": 1,
    "dense_len": 64,
}


def session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(onnxruntime_operators()))
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def ort_value(tensor: Tensor) -> onnxruntime.OrtValue:
    if tensor.dtype is torch.bfloat16:
        bits = tensor.contiguous().view(torch.uint16).numpy()
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())


def weight(stored: Mapping[str, Tensor], given: WeightInput) -> Tensor:
    """What an input is to hold, by FORMAT.md; decoded by the tests' own reference."""
    dtype = getattr(torch, given.spec.dtype.value)
    parts = [numbers(stored, part).to(dtype) for part in given.parts]
    if given.spec.shape == (1,):
        assert len({part.item() for part in parts}) == 1
        return parts[0].reshape(1)
    return torch.cat(parts).reshape([int(extent) for extent in given.spec.shape])


def numbers(stored: Mapping[str, Tensor], part: WeightPart) -> Tensor:
    how = part.dequantization
    if how is None:
        return stored[part.tensor]
    module = part.tensor.removesuffix("_packed").removesuffix(".weight")
    assert how.scale == f"{module}.weight_scale"
    values = dequantized(dict(stored), module, SCHEMES[how.precision].format)
    assert values.shape[1] == how.columns
    if how.precision is Precision.NVFP4:
        assert how.global_scale == pytest.approx(1 / stored[f"{module}.weight_global_scale"].item(), rel=1e-7)
    else:
        assert how.global_scale == 1.0
    return values


class CpuRunner(GraphRunner):
    """As `GraphRunner`, in ONNX Runtime, with the weights of a checkpoint."""

    def __init__(self, folder: Path, source: Path, capacity: int) -> None:
        checkpoint = Checkpoint.open(source)
        graph = export_cpu_graph(checkpoint, folder)
        self.weights = weights_of(graph, source)
        self.session = session(folder / CPU_GRAPH_FILE)
        self.start(checkpoint.config, graph.step, capacity)
        self.evaluator = self

    def again(self) -> CpuRunner:
        """At the start of another sequence."""
        self.caches, self.past = dict(self.empty), 0
        return self

    def run(self, _: None, feeds: dict[str, Any]) -> list[np.ndarray]:
        given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        names = [spec.name for spec in self.step.outputs]
        return [value.numpy() for value in self.session.run_with_ort_values(names, {**given, **self.weights})]


def weights_of(graph: CpuGraph, source: Path) -> dict[str, onnxruntime.OrtValue]:
    stored = stored_tensors(source)
    return {given.spec.name: ort_value(weight(stored, given)) for given in graph.weights}


def run_in_chunks(folder: Path, source: Path, ids: Tensor) -> Tensor:
    runner = CpuRunner(folder, source, len(ids))
    runner.feed(ids[:-31], len(ids))
    return runner.feed(ids[-31:], len(ids))


def all_rows(folder: Path, source: Path, ids: Tensor, chunks: Sequence[int]) -> Tensor:
    """Logits [T, V] of `ids` [T], fed in chunks of these lengths, with the rows of each the last first."""
    runner, found = CpuRunner(folder, source, len(ids)), []
    for chunk in ids.split(list(chunks)):
        found.append(runner.feed_rows(chunk, range(len(chunk) - 1, -1, -1), len(ids)).flip(0))
    return torch.cat(found)


def token_ids(vocabulary: int, count: int) -> Tensor:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(5))


def test_graph_gives_golden_logits(tmp_path: Path) -> None:
    vectors = golden("golden")
    assert_close(run_in_chunks(tmp_path, GOLDEN_CHECKPOINT, vectors["input_ids"]), vectors["prefill_logits"][-1])


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_models_match_torch(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    """The embedding stays in its stored type, also where lm_head has the same numbers."""
    source = write_small_checkpoint(
        tmp_path / "checkpoint",
        ["minicpm4", "lightning-attn"],
        sparse_config=SPARSE_SIZES,
        head_dim=32,
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    ids = token_ids(97, 150)
    model = SalaForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert_close(all_rows(tmp_path, source, ids, (1, 64, 85)), model(ids[None])[0])


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_quantised_products_round_as_the_formats_say(tmp_path: Path, precision: Precision) -> None:
    source = tiny_checkpoint(2, precision)
    prompts = token_ids(512, 9 * 7).reshape(9, 7)
    runner = CpuRunner(tmp_path, source, 7)
    found = torch.stack([runner.again().feed(prompt) for prompt in prompts])
    with quantized_model(source) as model:
        expected = model(prompts)[:, -1]
    with quantized_model(source, round_inputs=False) as model:
        effect = (model(prompts)[:, -1] - expected).abs().max() / expected.abs().max()
    # Where a sum in another order crosses the border between two codes, all that follows differs; most prompts have
    # none such, and then nothing but fp32 rounding is left.
    assert ((found - expected).abs().amax(-1) / expected.abs().max()).median() < 1e-5
    assert effect == 0 if precision is Precision.INT4 else effect > 1e-2


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_scales_of_inputs_are_inputs_that_tell_of_every_tensor(tmp_path: Path, precision: Precision) -> None:
    source = write_quantized_checkpoint(tmp_path / "source", precision, per_channel=True, ignore=("lm_head",))
    graph = export_cpu_graph(Checkpoint.open(source), tmp_path)
    scales = {each.spec.name: each for each in graph.weights if each.spec.name.endswith("input_scale")}
    assert len(scales) == 4 * 2
    pack = scales["model.layers.1.self_attn.q_proj+k_proj+v_proj+z_proj.input_scale"]
    assert pack.spec == TensorSpec(pack.spec.name, DType.FLOAT32, (1,))
    roles = ("q_proj", "k_proj", "v_proj", "z_proj")
    assert pack.parts == tuple(WeightPart(tensor=f"model.layers.1.self_attn.{role}.input_scale") for role in roles)


@pytest.mark.parametrize("precision", [Precision.BF16, *QUANTIZED_PRECISIONS])
def test_interface_is_the_signature_and_then_every_tensor_once(tmp_path: Path, precision: Precision) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    graph = export_cpu_graph(checkpoint, tmp_path)
    model = onnx.load(tmp_path / CPU_GRAPH_FILE)
    given = [*graph.step.inputs, *(each.spec for each in graph.weights)]
    assert [value.name for value in model.graph.input] == [spec.name for spec in given]
    assert [value.name for value in model.graph.output] == [spec.name for spec in graph.step.outputs]
    for value, spec in zip(model.graph.input, given, strict=True):
        dims = value.type.tensor_type.shape.dim
        assert tuple(d.dim_param or d.dim_value for d in dims) == spec.shape, spec.name
    parts = [name for each in graph.weights for part in each.parts for name in part.tensors]
    global_scales = {name for name in checkpoint.tensors() if name.endswith("_global_scale")}
    assert sorted(parts) == sorted(checkpoint.tensors().keys() - global_scales)
    assert sum(tensor.ByteSize() for tensor in model.graph.initializer) < 4096
    assert str(tmp_path).encode() not in (tmp_path / CPU_GRAPH_FILE).read_bytes()


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_layers_one_by_one_give_what_the_whole_gives(tmp_path: Path, precision: Precision) -> None:
    source = tiny_checkpoint(2, precision)
    ids = token_ids(512, 60)
    runner = CpuRunner(tmp_path, source, len(ids))
    expected = runner.feed(ids)
    feeds = dict(runner.first_feeds(ids))
    for layer in range(2):
        write_layer(TextFile.read(opened(tmp_path / CPU_GRAPH_FILE)), layer, tmp_path / "layer.onnx")
        part = session(tmp_path / "layer.onnx")
        names = [value.name for value in part.get_inputs()]
        assert names[0] == ("input_ids" if layer == 0 else "hidden_states.1")
        others = [name for name in names if f".{1 - layer}." in name]
        assert not others, "nothing of another layer"
        given = {name: runner.weights.get(name) or ort_value(torch.from_numpy(feeds[name])) for name in names}
        stream = f"hidden_states.{layer + 1}"
        assert [value.name for value in part.get_outputs()] == [stream]
        feeds[stream] = part.run_with_ort_values(None, given)[0].numpy()
    stored = stored_tensors(source)
    rows = torch.from_numpy(feeds["hidden_states.2"])[0]
    config = Checkpoint.open(source).config
    found = head_logits(config, stored["model.norm.weight"], stored["lm_head.weight"], rows)
    assert_close(found[-1], expected)


@pytest.mark.parametrize("layer", [-1, 2])
def test_layer_that_is_not_there_is_refused(tmp_path: Path, layer: int) -> None:
    export_cpu_graph(Checkpoint.open(tiny_checkpoint(2)), tmp_path)
    with pytest.raises(ExportError, match=rf"cpu.onnx has no layer {layer}: .* \(build the bundle again\)"):
        write_layer(TextFile.read(opened(tmp_path / CPU_GRAPH_FILE)), layer, tmp_path / "layer.onnx")
    assert not (tmp_path / "layer.onnx").exists()
