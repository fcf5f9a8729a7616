"""The exported graph: its form, and its numbers through ONNX's own evaluator."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.closeness import assert_close
from support.golden import CASES, GOLDEN_CHECKPOINT, golden
from support.graph_runner import GraphRunner

from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.signature import Signature
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.ops.registry import CONTRACTS
from sala_export.specs import Precision


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signature]:
    """The golden checkpoint as an fp32 graph; weights copied, since `onnx.load` refuses hard links."""
    directory = tmp_path_factory.mktemp("golden-fp32")
    step = export_graph(Checkpoint.open(GOLDEN_CHECKPOINT), directory, Precision.FP32, copy_weights=True)
    return directory / GRAPH_FILE, step


@pytest.mark.parametrize("case", CASES)
def test_graph_gives_golden_logits_in_uneven_chunks(exported: tuple[Path, Signature], case: str) -> None:
    vectors = golden(case)
    prompt, steps = vectors["input_ids"], vectors["decode_ids"][:26]  # golden_cross turns sparse at the 24th
    path, step = exported
    runner = GraphRunner(path, Checkpoint.open(GOLDEN_CHECKPOINT).config, step, len(prompt) + len(steps))
    for start, stop in ((0, 700), (700, 701), (701, len(prompt))):
        logits = runner.feed(prompt[start:stop], len(prompt))
    assert_close(logits, vectors["prefill_logits"][-1])
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
        assert (tiny_bf16 / name).stat().st_ino == source.stat().st_ino, "hard-linked, not copied"
    graph = ir.load(tiny_bf16 / GRAPH_FILE).graph
    external = {n: v.const_value for n, v in graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    assert external.keys() == checkpoint.locations.keys()
    for name, tensor in external.items():
        where = checkpoint.locations[name]
        assert (tensor.location, tensor.offset, tensor.length) == (where.file.name, where.offset, where.length)
    inline = sum(v.const_value.nbytes for n, v in graph.initializers.items() if n not in external)
    assert inline < 1024, "nothing but folded scalars lies in the graph itself"
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


def test_every_product_reads_out_in_weights_through_a_transpose(tiny_bf16: Path) -> None:
    """[in, out] weights are stored twice by engines with a one-token profile."""
    products = [n for n in ir.load(tiny_bf16 / GRAPH_FILE).graph if n.op_type in ("MatMul", "Gemm")]
    counts = Counter(n.op_type for n in products)
    assert counts == {"MatMul": 4 * Checkpoint.open(tiny_checkpoint()).config.num_hidden_layers, "Gemm": 1}
    for node in products:
        if node.op_type == "Gemm":
            assert node.attributes["transB"].as_int() == 1
        else:
            assert node.inputs[1].producer().op_type == "Transpose"


def test_operators_carry_exactly_the_attributes_of_their_contract(tiny_bf16: Path) -> None:
    contracts = {contract.onnx_type: contract for contract in CONTRACTS}
    nodes = [node for node in ir.load(tiny_bf16 / GRAPH_FILE).graph if node.domain == "sala"]
    assert {node.op_type for node in nodes} == contracts.keys()
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


def test_checkpoint_of_another_type_is_cast_in_the_graph(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint())
    export_graph(checkpoint, tmp_path, Precision.FP32)
    graph = ir.load(tmp_path / GRAPH_FILE).graph
    casts = [node for node in graph if node.name.endswith(".weight/Cast")]
    assert len(casts) == len(checkpoint.locations)
    assert all(node.outputs[0].dtype == ir.DataType.FLOAT for node in casts)


@pytest.mark.parametrize(
    "mixers",
    [["lightning-attn"], ["minicpm4"], ["lightning-attn", "lightning-attn", "minicpm4", "lightning-attn"]],
    ids=["lightning", "sparse", "mixed"],
)
def test_other_orders_of_mixers_and_sparse_sizes_match_torch(tmp_path: Path, mixers: list[str]) -> None:
    from support.small_models import write_small_checkpoint

    from sala_export import SalaForCausalLM

    directory = write_small_checkpoint(
        tmp_path / "checkpoint",
        mixers,
        sparse_config={
            "kernel_size": 16,
            "kernel_stride": 8,
            "block_size": 32,
            "topk": 3,
            "window_size": 64,
            "init_blocks": 2,
            "dense_len": -1,
        },
    )
    graph = tmp_path / "graph"
    graph.mkdir()
    checkpoint = Checkpoint.open(directory)
    step = export_graph(checkpoint, graph, Precision.FP32, copy_weights=True)
    ids = torch.randint(0, checkpoint.config.vocab_size, (331,), generator=torch.Generator().manual_seed(3))
    runner = GraphRunner(graph / GRAPH_FILE, checkpoint.config, step, len(ids))
    runner.feed(ids[:200])
    logits = runner.feed(ids[200:])
    model = SalaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert_close(logits, model(ids[None])[0, -1])


def test_weights_are_copied_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    checkpoint = Checkpoint.open(tiny_checkpoint())
    export_graph(checkpoint, tmp_path, Precision.BF16)
    for name, source in checkpoint.shard_files().items():
        assert (tmp_path / name).stat().st_ino != source.stat().st_ino
        assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_truncated_model_keeps_its_shards_and_scale(tmp_path: Path) -> None:
    first = Checkpoint.open(tiny_checkpoint(), layers=1)
    export_graph(first, tmp_path, Precision.BF16)
    graph = ir.load(tmp_path / GRAPH_FILE).graph
    assert not any(".layers.1." in name for name in graph.initializers)
    (scale,) = {
        float(node.inputs[1].const_value.numpy())
        for node in graph
        if node.op_type == "Mul" and node.name.startswith("layers.0/")
    }
    assert scale == float(torch.tensor(1.4 / 5**0.5, dtype=torch.bfloat16)), "scale_depth over the root of all 5 layers"
