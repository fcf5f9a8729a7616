"""The exported graph: its form, and its numbers through ONNX's own evaluator."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close
from support.golden import CASES, GOLDEN_CHECKPOINT, golden
from support.graph_runner import GraphRunner
from support.small_models import write_small_checkpoint

from sala_export import SalaForCausalLM
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.signature import Signature
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.onnx.graph_builder import FLAT_ROWS
from sala_export.ops.registry import CONTRACTS, INFLLMV2_ATTENTION, LIGHTNING_ATTENTION
from sala_export.specs import Precision

LIGHTNING, SPARSE = "lightning-attn", "minicpm4"
SPARSE_SIZES = {
    "kernel_size": 16,
    "kernel_stride": 8,
    "block_size": 32,
    "topk": 3,
    "window_size": 64,
    "init_blocks": 2,
    "dense_len": -1,
}
ROUNDINGS = 32
"""Of three layers in 16 bits, some ten rounded tensors in each: half-units of the last place of the largest logit."""

EXPORT = """
import sys
from pathlib import Path
from sala_export.checkpoint.reader import Checkpoint
from sala_export.onnx.cpu_form import export_cpu_graph
from sala_export.onnx.export import export_graph
from sala_export.specs import Precision
checkpoint = Checkpoint.open(Path(sys.argv[1]))
export_graph(checkpoint, Path(sys.argv[2]), checkpoint.precision or Precision.FP16)
export_cpu_graph(checkpoint, Path(sys.argv[2]), checkpoint.precision or Precision.FP16)
print(*sorted({"torch", "triton"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signature]:
    """The golden checkpoint as an fp32 graph."""
    directory = tmp_path_factory.mktemp("golden-fp32")
    step = export_graph(Checkpoint.open(GOLDEN_CHECKPOINT), directory, Precision.FP32)
    return directory / GRAPH_FILE, step


@pytest.mark.parametrize("case", CASES)
def test_graph_gives_golden_logits_in_uneven_chunks(exported: tuple[Path, Signature], case: str) -> None:
    vectors = golden(case)
    prompt, steps = vectors["input_ids"], vectors["decode_ids"][:26]  # golden_cross turns sparse at the 24th
    path, step = exported
    runner = GraphRunner(path, Checkpoint.open(GOLDEN_CHECKPOINT).config, step, len(prompt) + len(steps))
    for start, stop in ((0, 700), (700, 701)):
        runner.feed(prompt[start:stop], len(prompt))
    # Rows in any order, and one twice.
    last_first = vectors["prefill_logits_pos"].flip(0)[[0, *range(64)]]
    logits = runner.feed_rows(prompt[701:], (last_first - 701).tolist(), len(prompt))
    assert_close(logits, vectors["prefill_logits"].flip(0)[[0, *range(64)]])
    decoded = torch.stack([runner.feed(token[None]) for token in steps])
    assert_close(decoded, vectors["decode_logits"][: len(steps)])


def test_interface_is_the_signature(exported: tuple[Path, Signature]) -> None:
    path, step = exported
    graph = onnx.load(path, load_external_data=False).graph
    for values, specs in ((graph.input, step.inputs), (graph.output, step.outputs)):
        assert [v.name for v in values] == [s.name for s in specs]
        for value, spec in zip(values, specs, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert tuple(d.dim_param or d.dim_value for d in dims) == spec.shape, spec.name
            assert onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) == spec.dtype.value


def test_model_passes_the_onnx_checker(exported: tuple[Path, Signature]) -> None:
    onnx.checker.check_model(str(exported[0]))


@pytest.fixture(scope="module")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-bf16")
    export_graph(Checkpoint.open(tiny_checkpoint()), directory, Precision.BF16)
    return directory


def test_weights_are_the_checkpoints_own_bytes(tiny_bf16: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint())
    for name, source in checkpoint.shard_files().items():
        assert (tiny_bf16 / name).read_bytes() == source.path.read_bytes()
    graph = ir.load(tiny_bf16 / GRAPH_FILE).graph
    external = {n: v.const_value for n, v in graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    assert external.keys() == checkpoint.locations.keys()
    for name, tensor in external.items():
        where = checkpoint.locations[name]
        assert (tensor.location, tensor.offset, tensor.length) == (where.file.path.name, where.offset, where.length)
    inline = sum(v.const_value.nbytes for n, v in graph.initializers.items() if n not in external)
    assert inline < 1024, "nothing but scalars and shapes lies in the graph itself"
    assert not any(node.op_type == "Cast" and node.name.endswith(".weight/Cast") for node in graph)


def test_nodes_are_named_by_layer_and_role(tiny_bf16: Path) -> None:
    config = Checkpoint.open(tiny_checkpoint()).config
    graph = ir.load(tiny_bf16 / GRAPH_FILE).graph
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    for layer, mixer in enumerate(config.mixer_types):
        packed, operator = (
            ("qkvg_proj", "InfLLMv2Attention") if mixer == "minicpm4" else ("qkvz_proj", "LightningAttention")
        )
        for name in (
            f"layers.{layer}.input_layernorm/Mul",
            f"layers.{layer}.self_attn.{packed}/MatMul",
            f"layers.{layer}.self_attn/{operator}",
            f"layers.{layer}.self_attn.o_proj/MatMul",
            f"layers.{layer}.mlp.gate_up_proj/MatMul",
            f"layers.{layer}.mlp.down_proj/MatMul",
        ):
            assert name in names


def test_types_and_shapes_of_all_values_are_those_that_onnx_infers(tiny_bf16: Path) -> None:
    model = onnx.load(tiny_bf16 / GRAPH_FILE, load_external_data=False)
    outputs = {name for node in model.graph.node for name in node.output} - {v.name for v in model.graph.output}
    given = {value.name: value for value in model.graph.value_info if value.name in outputs}
    ours = {name for node in model.graph.node if node.domain == "sala" for name in node.output}
    del model.graph.value_info[:]
    model.graph.value_info.extend(value for name, value in given.items() if name in ours)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    assert {value.name for value in inferred} == given.keys() == outputs
    for value in inferred:
        for dim in value.type.tensor_type.shape.dim:
            # Inference knows no name for the product of two extents.
            if dim.dim_param.startswith("unk__"):
                dim.dim_param = FLAT_ROWS
        assert value == given[value.name]


def test_residual_stream_is_named_and_alone_between_layers(tiny_bf16: Path) -> None:
    graph = ir.load(tiny_bf16 / GRAPH_FILE).graph
    layers = Checkpoint.open(tiny_checkpoint()).config.num_hidden_layers
    for layer in range(layers):
        inside = [node for node in graph if node.name.startswith((f"layers.{layer}.", f"layers.{layer}/"))]
        read = {value for node in inside for value in node.inputs if value.producer() is not None}
        own = {value for node in inside for value in node.outputs}
        assert [value.name for value in read - own] == [f"hidden_states.{layer}"]
        left = [value.name for value in own if any(user not in inside for user in value.consumers())]
        assert left == [f"hidden_states.{layer + 1}"]


def test_every_product_reads_out_in_weights_through_a_transpose(tiny_bf16: Path) -> None:
    products = [n for n in ir.load(tiny_bf16 / GRAPH_FILE).graph if n.op_type == "MatMul"]
    assert len(products) == 4 * Checkpoint.open(tiny_checkpoint()).config.num_hidden_layers + 1
    for node in products:
        assert node.inputs[1].producer().op_type == "Transpose"


def test_operators_carry_exactly_the_attributes_of_their_contract(tiny_bf16: Path) -> None:
    contracts = {contract.onnx_type: contract for contract in CONTRACTS}
    nodes = [node for node in ir.load(tiny_bf16 / GRAPH_FILE).graph if node.domain == "sala"]
    assert {node.op_type for node in nodes} == {INFLLMV2_ATTENTION.onnx_type, LIGHTNING_ATTENTION.onnx_type}
    for node in nodes:
        contract = contracts[node.op_type]
        expected = [a.name for a in contract.attributes] + ["plugin_namespace", "plugin_version"]
        assert sorted(node.attributes) == sorted(expected)
        assert node.attributes["plugin_namespace"].as_string() == "sala"
        assert (len(node.inputs), len(node.outputs)) == (len(contract.inputs), len(contract.outputs))


def test_graph_file_holds_no_path_of_this_machine(tiny_bf16: Path) -> None:
    content = (tiny_bf16 / GRAPH_FILE).read_bytes()
    for path in (Path(torch.__file__).parent, Path(__file__).parent.parent, tiny_bf16):
        assert str(path).encode() not in content


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.NVFP4])
def test_export_imports_no_torch(tmp_path: Path, precision: Precision) -> None:
    source = tiny_checkpoint(2, precision)
    run = subprocess.run(
        [sys.executable, "-c", EXPORT, str(source), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr


def test_graph_is_the_same_at_every_export(tiny_bf16: Path, tmp_path: Path) -> None:
    export_graph(Checkpoint.open(tiny_checkpoint()), tmp_path, Precision.BF16)
    assert (tmp_path / GRAPH_FILE).read_bytes() == (tiny_bf16 / GRAPH_FILE).read_bytes()


def test_checkpoint_of_another_type_is_cast_in_the_graph(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint())
    export_graph(checkpoint, tmp_path, Precision.FP32)
    graph = ir.load(tmp_path / GRAPH_FILE).graph
    casts = [node for node in graph if node.name.endswith(".weight/Cast")]
    # Of the embedding, only the rows that are looked up.
    assert len(casts) == len(checkpoint.locations) - 1
    assert all(node.outputs[0].dtype == ir.DataType.FLOAT for node in casts)


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize(
    "mixers",
    [
        [LIGHTNING],
        [SPARSE],
        [LIGHTNING, LIGHTNING],
        [SPARSE, SPARSE],
        [LIGHTNING, LIGHTNING, SPARSE, LIGHTNING],
    ],
    ids=["lightning", "sparse", "lightning only", "sparse only", "mixed"],
)
def test_other_orders_of_mixers_and_sparse_sizes_match_torch(tmp_path: Path, mixers: list[str], tied: bool) -> None:
    """Four heads share two key heads."""
    directory = write_small_checkpoint(
        tmp_path / "checkpoint", mixers, sparse_config=SPARSE_SIZES, tie_word_embeddings=tied
    )
    logits = graph_logits(directory, tmp_path, Precision.FP32, ids := token_ids(331))
    model = SalaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert_close(logits, model(ids[None])[0, -1])


@pytest.mark.parametrize(("precision", "rounding"), [(Precision.BF16, 2.0**-9), (Precision.FP16, 2.0**-11)])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_graphs_in_16_bits_match_torch(
    tmp_path: Path, precision: Precision, rounding: float, stored: torch.dtype
) -> None:
    dense = {**SPARSE_SIZES, "dense_len": 512}  # which blocks are chosen depends on roundings
    mixers = [SPARSE, LIGHTNING, LIGHTNING]
    directory = write_small_checkpoint(tmp_path / "checkpoint", mixers, sparse_config=dense, dtype=stored)
    logits = graph_logits(directory, tmp_path, precision, ids := token_ids(90))
    for dtype in (getattr(torch, precision.dtype.value), torch.float32):
        model = SalaForCausalLM.from_pretrained(directory, dtype=dtype)
        assert_close(logits, model(ids[None])[0, -1], ROUNDINGS * rounding)


def token_ids(count: int) -> torch.Tensor:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(3))


def graph_logits(checkpoint: Path, folder: Path, precision: Precision, ids: torch.Tensor) -> torch.Tensor:
    """Of the last of `ids`, which come in two chunks."""
    graph = folder / "graph"
    graph.mkdir()
    opened = Checkpoint.open(checkpoint)
    step = export_graph(opened, graph, precision)
    runner = GraphRunner(graph / GRAPH_FILE, opened.config, step, len(ids))
    runner.feed(ids[:50], len(ids))
    return runner.feed(ids[50:], len(ids))


def test_weights_are_copied_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    checkpoint = Checkpoint.open(tiny_checkpoint())
    export_graph(checkpoint, tmp_path, Precision.BF16, link_weights=True)
    for name, source in checkpoint.shard_files().items():
        assert (tmp_path / name).stat().st_ino != source.path.stat().st_ino
        assert (tmp_path / name).read_bytes() == source.path.read_bytes()


def test_truncated_model_keeps_its_shards_and_scale(tmp_path: Path) -> None:
    first = Checkpoint.open(tiny_checkpoint(), layers=1)
    export_graph(first, tmp_path, Precision.BF16)
    graph = ir.load(tmp_path / GRAPH_FILE).graph
    assert not any(".layers.1." in name for name in graph.initializers)
    scales = [node.inputs[1].const_value.numpy() for node in graph if node.name in ("layers.0/Mul", "layers.0/Mul_2")]
    # scale_depth over the root of all 5 layers
    assert [float(scale) for scale in scales] == [float(torch.tensor(1.4 / 5**0.5, dtype=torch.bfloat16))] * 2
