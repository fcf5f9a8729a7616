"""The CPU graphs in ONNX Runtime: numbers, with weights as their interface describes them, and layers one by one."""

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
from support.closeness import FLOAT32_TOLERANCE, assert_close
from support.golden import GOLDEN_CHECKPOINT, golden
from support.graph_runner import GraphRunner, as_torch
from support.opened_files import opened
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import quantized_model, stored_tensors
from support.small_models import write_small_checkpoint
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.bundle.manifest import WeightInput, WeightPart
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import ExportError
from sala_export.files import TextFile
from sala_export.installation import onnxruntime_operators
from sala_export.model.layer_run import logits as head_logits
from sala_export.model.signature import signature
from sala_export.onnx.cpu_form import CPU_GRAPH_FILES, CpuGraph, export_cpu_graph
from sala_export.onnx.graph_builder import IR_TYPES
from sala_export.onnx.layer_graph import write_layer
from sala_export.specs import QUANTIZED_PRECISIONS, CpuMath, DType, Precision, TensorSpec

SPARSE_SIZES = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 16,
    "topk": 2,
    "window_size": 32,
    "init_blocks": 1,
    "dense_len": 64,
}
TOLERANCES = {CpuMath.EXACT: FLOAT32_TOLERANCE, CpuMath.FAST: 0.04}
"""Of the fast form, twice what rounding to bf16, or to 8 bits for int4, made of the golden logits."""
_BITS = {
    torch.bfloat16: (torch.uint16, onnx.TensorProto.BFLOAT16),
    torch.float8_e4m3fn: (torch.uint8, onnx.TensorProto.FLOAT8E4M3FN),
}
"""Types that numpy has not: what it takes for their bits, and their number in ONNX."""


def session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(onnxruntime_operators()))
    # Other programs compute on this machine too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def ort_value(tensor: Tensor) -> onnxruntime.OrtValue:
    if tensor.dtype in _BITS:
        carrier, onnx_type = _BITS[tensor.dtype]
        bits = tensor.contiguous().view(carrier).numpy()
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())


def weight(stored: Mapping[str, Tensor], given: WeightInput) -> Tensor:
    """What an input is to hold, by FORMAT.md."""
    dtype = getattr(torch, given.spec.dtype.value)
    parts = [scales(stored, part) if part.rows else stored[part.tensor].to(dtype).flatten() for part in given.parts]
    if given.spec.shape == (1,):
        assert len({part.item() for part in parts}) == 1
        return parts[0]
    return torch.cat(parts).reshape([int(extent) for extent in given.spec.shape])


def scales(stored: Mapping[str, Tensor], part: WeightPart) -> Tensor:
    assert part.rows is not None
    rows = stored[part.tensor].to(torch.float32).flatten().expand(part.rows)
    return rows if part.factor is None else rows * stored[part.factor].item()


class CpuRunner(GraphRunner):
    """As `GraphRunner`, in ONNX Runtime, with the weights of a checkpoint."""

    def __init__(
        self,
        folder: Path,
        source: Path,
        capacity: int,
        math: CpuMath = CpuMath.EXACT,
        precision: Precision = Precision.BF16,
    ) -> None:
        checkpoint = Checkpoint.open(source)
        graph = export_cpu_graph(checkpoint, folder, precision)
        self.weights = weights_of(graph, source)
        self.session = session(folder / CPU_GRAPH_FILES[math])
        self.start(checkpoint.config, graph.steps[math], capacity)
        self.evaluator = self

    def again(self) -> CpuRunner:
        """At the start of another sequence."""
        self.caches, self.past = dict(self.empty), 0
        return self

    def run(self, _: None, feeds: dict[str, Any]) -> list[np.ndarray]:
        binding = self.session.io_binding()
        for name, value in self.weights.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort_value(as_torch(array)))
        binding.bind_output("logits", "cpu")
        # ONNX Runtime gives no bfloat16 to numpy, so caches come out in arrays of ours.
        caches = [np.empty_like(feeds[entry.past.name]) for entry in self.step.caches]
        for entry, cache in zip(self.step.caches, caches, strict=True):
            element = int(IR_TYPES[entry.present.dtype])
            binding.bind_output(entry.present.name, "cpu", 0, element, cache.shape, cache.ctypes.data)
        self.session.run_with_iobinding(binding)
        return [binding.get_outputs()[0].numpy(), *caches]


def weights_of(graph: CpuGraph, source: Path) -> dict[str, onnxruntime.OrtValue]:
    stored = stored_tensors(source)
    return {given.spec.name: ort_value(weight(stored, given)) for given in graph.weights}


def all_rows(runner: CpuRunner, ids: Tensor, chunks: Sequence[int]) -> Tensor:
    """Logits [T, V] of `ids` [T], fed in chunks of these lengths, with the rows of each the last first."""
    found = []
    for chunk in ids.split(list(chunks)):
        found.append(runner.feed_rows(chunk, range(len(chunk) - 1, -1, -1), len(ids)).flip(0))
    return torch.cat(found)


def token_ids(vocabulary: int, count: int) -> Tensor:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("math", CpuMath)
def test_graphs_give_golden_logits(tmp_path: Path, math: CpuMath) -> None:
    vectors = golden("golden")
    ids = vectors["input_ids"]
    runner = CpuRunner(tmp_path, GOLDEN_CHECKPOINT, len(ids), math)
    runner.feed(ids[:-31], len(ids))
    assert_close(runner.feed(ids[-31:], len(ids)), vectors["prefill_logits"][-1], TOLERANCES[math])


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("math", CpuMath)
def test_other_models_match_torch(tmp_path: Path, math: CpuMath, tied: bool, dtype: torch.dtype) -> None:
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
    precision = Precision.FP16 if dtype is torch.float16 else Precision.BF16
    runner = CpuRunner(tmp_path, source, len(ids), math, precision)
    assert_close(all_rows(runner, ids, (1, 64, 85)), model(ids[None])[0], TOLERANCES[math])


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
@pytest.mark.parametrize("math", CpuMath)
def test_quantised_products_round_as_the_formats_say(tmp_path: Path, math: CpuMath, precision: Precision) -> None:
    source = tiny_checkpoint(2, precision)
    prompts = token_ids(512, 9 * 7).reshape(9, 7)
    runner = CpuRunner(tmp_path, source, 7, math, precision)
    found = torch.stack([runner.again().feed(prompt) for prompt in prompts])
    with quantized_model(source) as model:
        expected = model(prompts)[:, -1]
    with quantized_model(source, round_inputs=False) as model:
        effect = (model(prompts)[:, -1] - expected).norm() / expected.norm()
    # Where a sum in another order crosses the border between two codes, all that follows differs; most prompts have
    # none such, and then nothing but fp32 rounding is left. The roundings of the fast form cross many borders, which
    # must change less than it does to round inputs at all.
    assert effect == 0 if precision is Precision.INT4 else effect > 0.05
    if math is CpuMath.EXACT:
        assert ((found - expected).abs().amax(-1) / expected.abs().max()).median() < FLOAT32_TOLERANCE
    else:
        assert (found - expected).norm() / expected.norm() < (effect or TOLERANCES[math])


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT4])
@pytest.mark.parametrize("math", CpuMath)
def test_chunks_do_not_matter(tmp_path: Path, math: CpuMath, precision: Precision) -> None:
    ids = token_ids(512, 150)
    runner = CpuRunner(tmp_path, tiny_checkpoint(2, precision), len(ids), math, precision)
    whole = all_rows(runner, ids, (150,))
    for chunks in ((1, 7, 64, 78), (149, 1), (50, *[1] * 20, 80)):
        assert_close(all_rows(runner.again(), ids, chunks), whole, TOLERANCES[math])


def test_chunks_of_mxfp8_change_few_rows(tmp_path: Path) -> None:
    """A sum in another order can cross the border between two codes, and then its row differs. Most rows have none."""
    ids = token_ids(512, 150)
    runner = CpuRunner(tmp_path, tiny_checkpoint(2, Precision.MXFP8), len(ids), CpuMath.EXACT, Precision.MXFP8)
    whole = all_rows(runner, ids, (150,))
    errors = (all_rows(runner.again(), ids, (1, 7, 64, 78)) - whole).abs().amax(-1) / whole.abs().max()
    assert errors.median() < FLOAT32_TOLERANCE
    assert errors.max() < TOLERANCES[CpuMath.FAST]


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_scales_of_inputs_are_inputs_that_tell_of_every_tensor(tmp_path: Path, precision: Precision) -> None:
    source = write_quantized_checkpoint(tmp_path / "source", precision, per_channel=True, ignore=("lm_head",))
    graph = export_cpu_graph(Checkpoint.open(source), tmp_path, precision)
    scales = {each.spec.name: each for each in graph.weights if each.spec.name.endswith("input_scale")}
    assert len(scales) == 4 * 2
    pack = scales["model.layers.1.self_attn.q_proj+k_proj+v_proj+z_proj.input_scale"]
    assert pack.spec == TensorSpec(pack.spec.name, DType.FLOAT32, (1,))
    roles = ("q_proj", "k_proj", "v_proj", "z_proj")
    assert pack.parts == tuple(WeightPart(tensor=f"model.layers.1.self_attn.{role}.input_scale") for role in roles)


@pytest.mark.parametrize("math", CpuMath)
@pytest.mark.parametrize("precision", [Precision.BF16, *QUANTIZED_PRECISIONS])
def test_interface_is_the_signature_and_then_every_tensor_once(
    tmp_path: Path, math: CpuMath, precision: Precision
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    graph = export_cpu_graph(checkpoint, tmp_path, precision)
    step, file = graph.steps[math], tmp_path / CPU_GRAPH_FILES[math]
    assert step == signature(checkpoint.config, DType.FLOAT32 if math is CpuMath.EXACT else precision.dtype)
    model = onnx.load(file)
    given = [*step.inputs, *(each.spec for each in graph.weights)]
    assert [value.name for value in model.graph.input] == [spec.name for spec in given]
    assert [value.name for value in model.graph.output] == [spec.name for spec in step.outputs]
    for value, spec in zip(model.graph.input, given, strict=True):
        dims = value.type.tensor_type.shape.dim
        assert tuple(d.dim_param or d.dim_value for d in dims) == spec.shape, spec.name
        assert value.type.tensor_type.elem_type == int(IR_TYPES[spec.dtype])
    parts = [name for each in graph.weights for part in each.parts for name in part.tensors]
    global_scales = {name for name in checkpoint.tensors() if name.endswith("_global_scale")}
    # The scale of an input counts for each of the weights, and for the input itself.
    once = [name for name in parts if not name.endswith("input_scale")]
    assert len(once) == len(set(once))
    assert set(parts) == checkpoint.tensors().keys() - global_scales
    assert sum(tensor.ByteSize() for tensor in model.graph.initializer) < 4096
    assert str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize("precision", [Precision.BF16, *QUANTIZED_PRECISIONS])
def test_weights_are_inputs_as_they_are_stored(tmp_path: Path, precision: Precision) -> None:
    """So that a runtime can map them: all but norms, and scales of rows and inputs."""
    checkpoint = Checkpoint.open(tiny_checkpoint(2, precision))
    weights = export_cpu_graph(checkpoint, tmp_path, precision).weights
    changed = []
    for each in weights:
        where = checkpoint.tensors()[each.parts[0].tensor]
        if each.parts != (WeightPart(tensor=each.spec.name),) or where.dtype is not each.spec.dtype:
            changed.append(each)
        else:
            assert (each.spec.shape, each.spec.size_bytes({})) == (where.shape, where.length)
    assert all("norm" in each.spec.name or each.spec.name.endswith("_scale") for each in changed)
    assert sum(each.spec.size_bytes({}) for each in changed) < 0.02 * checkpoint.weight_bytes()


@pytest.mark.parametrize("math", CpuMath)
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_layers_one_by_one_give_what_the_whole_gives(tmp_path: Path, precision: Precision, math: CpuMath) -> None:
    source = tiny_checkpoint(2, precision)
    ids = token_ids(512, 60)
    runner = CpuRunner(tmp_path, source, len(ids), math, precision)
    expected = runner.feed(ids)
    feeds = dict(runner.first_feeds(ids))
    for layer in range(2):
        write_layer(TextFile.read(opened(tmp_path / CPU_GRAPH_FILES[math])), layer, tmp_path / "layer.onnx")
        part = session(tmp_path / "layer.onnx")
        names = [value.name for value in part.get_inputs()]
        assert names[0] == ("input_ids" if layer == 0 else "hidden_states.1")
        others = [name for name in names if f".{1 - layer}." in name]
        assert not others, "nothing of another layer"
        given = {name: runner.weights.get(name) or ort_value(as_torch(feeds[name])) for name in names}
        stream = f"hidden_states.{layer + 1}"
        assert [value.name for value in part.get_outputs()] == [stream]
        feeds[stream] = part.run_with_ort_values(None, given)[0].numpy()
    stored = stored_tensors(source)
    rows = torch.from_numpy(feeds["hidden_states.2"])[0]
    config = Checkpoint.open(source).config
    found = head_logits(config, stored["model.norm.weight"], stored["lm_head.weight"], rows)
    assert_close(found[-1], expected, TOLERANCES[math])


@pytest.mark.parametrize("layer", [-1, 2])
def test_layer_that_is_not_there_is_refused(tmp_path: Path, layer: int) -> None:
    export_cpu_graph(Checkpoint.open(tiny_checkpoint(2)), tmp_path, Precision.BF16)
    with pytest.raises(ExportError, match=rf"cpu.onnx has no layer {layer}: .* \(build the bundle again\)"):
        write_layer(TextFile.read(opened(tmp_path / "cpu.onnx")), layer, tmp_path / "layer.onnx")
    assert not (tmp_path / "layer.onnx").exists()
