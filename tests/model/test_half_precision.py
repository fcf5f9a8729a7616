"""float16 where naive float16 overflows: the Lightning output, the residual stream, the MLP's products."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from support.golden import GOLDEN_CHECKPOINT, golden
from support.graph_runner import GraphRunner
from support.small_models import write_small_checkpoint
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.checkpoint.folder import CheckpointFolder
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model import half_precision, stream_unit
from sala_export.onnx.export import GRAPH_FILE, export_graph
from sala_export.specs import DType, Precision

FLOAT16_LARGEST = 65504.0
FLOAT16_ROUNDING, BFLOAT16_ROUNDING = 2.0**-11, 2.0**-9
ROUNDINGS = 32
"""Of the order that errors of three layers reach, some ten rounded tensors in each: 32 half-units of the last place, of
the largest logit. An overflow gives infinities or NaN."""

MIXERS = ("minicpm4", "lightning-attn", "lightning-attn")
SPARSE = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "block_size": 16,
    "topk": 2,
    "window_size": 64,
    "init_blocks": 1,
    "dense_len": 512,
}
"""Dense up to 511 tokens: which blocks are chosen is another test's matter."""

OVERFLOWS: dict[str, Mapping[str, float]] = {
    "lightning output": {"v_proj": 6000.0},
    "residual stream": {"embed_tokens": 60000.0},
    "mlp products": {"gate_proj": 300.0, "up_proj": 500.0},
}


def write(directory: Path, scales: Mapping[str, float]) -> Path:
    return write_small_checkpoint(
        directory / "checkpoint", MIXERS, sparse_config=SPARSE, scales=scales, dtype=torch.bfloat16
    )


def load(checkpoint: Path, dtype: torch.dtype) -> SalaForCausalLM:
    return SalaForCausalLM.from_pretrained(checkpoint, dtype=dtype)


def tokens(count: int = 60) -> Tensor:
    return torch.randint(0, 97, (1, count), generator=torch.Generator().manual_seed(3))


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest error, of the largest expected value."""
    assert actual.isfinite().all()
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


class LargestSeen:
    """Largest magnitudes that an fp32 model holds where float16 would have to."""

    def __init__(self, model: SalaForCausalLM, ids: Tensor) -> None:
        self.stream = self.products = self.lightning = 0.0
        hooks = []
        for layer in model.model.layers:
            hooks.append(layer.register_forward_hook(lambda _, args, out: self._see("stream", out[0])))
            hooks.append(layer.mlp.down_proj.register_forward_hook(lambda _, args, out: self._see("products", args[0])))
            if hasattr(layer.self_attn, "q_norm"):
                hooks.append(layer.self_attn.register_forward_hook(self._see_lightning))
        model(ids)
        for hook in hooks:
            hook.remove()

    def _see(self, name: str, value: Tensor) -> None:
        setattr(self, name, max(getattr(self, name), value.abs().max().item()))

    def _see_lightning(self, mixer: torch.nn.Module, args: tuple, output: object) -> None:
        """The recurrence of the operator's README, one token after the other, up to its output norm."""
        x, _, step = args
        heads, dim = mixer.attributes["num_heads"], mixer.attributes["head_dim"]
        cos, sin = step.rope_cos_sin[0, :, None].chunk(2, -1)

        def rotated(weight: Tensor, norm: Tensor) -> Tensor:
            rows = (x[0] @ weight.T).view(-1, heads, dim)
            rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + mixer.attributes["eps"]) * norm
            first, second = rows.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        q, k = (
            rotated(mixer.q_proj.weight, mixer.q_norm.weight),
            rotated(mixer.k_proj.weight, mixer.k_norm.weight),
        )
        v = (x[0] @ mixer.v_proj.weight.T).view(-1, heads, dim)
        decay = torch.exp(-(2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)))[:, None, None]
        state = torch.zeros(heads, dim, dim)
        for q_HD, k_HD, v_HD in zip(q, k, v, strict=True):
            state = decay * state + k_HD[:, :, None] * v_HD[:, None, :]
            self._see("lightning", mixer.attributes["scale"] * torch.einsum("hd,hdv->hv", q_HD, state))


@pytest.mark.parametrize("case", OVERFLOWS)
def test_inputs_do_overflow_what_they_are_named_after(tmp_path: Path, case: str) -> None:
    model = load(write(tmp_path, OVERFLOWS[case]), torch.float32)
    seen = LargestSeen(model, tokens())
    value = {"lightning output": seen.lightning, "residual stream": seen.stream, "mlp products": seen.products}[case]
    assert value > 1.5 * FLOAT16_LARGEST


@pytest.mark.parametrize("case", OVERFLOWS)
def test_float16_model_agrees_where_naive_float16_overflows(tmp_path: Path, case: str) -> None:
    checkpoint = write(tmp_path, OVERFLOWS[case])
    expected = load(checkpoint, torch.float32)(tokens())
    assert error(load(checkpoint, torch.float16)(tokens()), expected) < ROUNDINGS * FLOAT16_ROUNDING
    assert error(load(checkpoint, torch.bfloat16)(tokens()), expected) < ROUNDINGS * BFLOAT16_ROUNDING


@pytest.mark.parametrize("case", ["residual stream", "mlp products"])
def test_without_the_stream_scale_the_same_inputs_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(stream_unit, "FLOAT16_STREAM_SCALE", 1.0)
    logits = load(write(tmp_path, OVERFLOWS[case]), torch.float16)(tokens())
    assert not logits.isfinite().all()


@pytest.mark.parametrize("case", OVERFLOWS)
def test_float16_graph_agrees_with_bfloat16(tmp_path: Path, case: str) -> None:
    checkpoint = write(tmp_path, OVERFLOWS[case])
    ids = tokens()[0]
    opened = Checkpoint.open(checkpoint)
    graph = tmp_path / "graph"
    graph.mkdir()
    step = export_graph(opened, graph, Precision.FP16)
    runner = GraphRunner(graph / GRAPH_FILE, opened.config, step, len(ids))
    runner.feed(ids[:37], len(ids))
    logits = runner.feed(ids[37:], len(ids))
    assert {cache.dtype.name for cache in runner.caches.values()} == {"float16", "float32"}
    for dtype, rounding in ((torch.bfloat16, BFLOAT16_ROUNDING), (torch.float32, FLOAT16_ROUNDING)):
        assert error(logits, load(checkpoint, dtype)(ids[None])[0, -1]) < ROUNDINGS * rounding


def test_float16_is_nearer_to_the_golden_logits_than_bfloat16() -> None:
    """The first 300 rows of the golden prompt see the same blocks in any precision: all of them."""
    config = CheckpointFolder.open(GOLDEN_CHECKPOINT).config
    rows = config.sparse_config.taken_blocks * config.sparse_config.block_size
    ids = golden("golden")["input_ids"][None, :rows]
    expected = load(GOLDEN_CHECKPOINT, torch.float32)(ids)
    errors = {dtype: error(load(GOLDEN_CHECKPOINT, dtype)(ids), expected) for dtype in (torch.float16, torch.bfloat16)}
    assert errors[torch.float16] < ROUNDINGS * FLOAT16_ROUNDING
    assert errors[torch.float16] < errors[torch.bfloat16] / 2


def test_scale_is_a_power_of_two_and_of_float16_alone() -> None:
    mantissa, _ = torch.frexp(torch.tensor(stream_unit.FLOAT16_STREAM_SCALE))
    assert mantissa == 0.5
    assert half_precision.stream_scale(torch.float16) == stream_unit.stream_unit(DType.FLOAT16) == 2.0**-6
    assert half_precision.stream_scale(torch.float32) == half_precision.stream_scale(torch.bfloat16) == 1.0
    assert stream_unit.stream_unit(DType.FLOAT32) == stream_unit.stream_unit(DType.BFLOAT16) == 1.0


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_graphs_of_other_types_have_no_trace_of_it(tmp_path: Path, precision: Precision) -> None:
    opened = Checkpoint.open(write(tmp_path, {}))
    graphs = {}
    for name, scale in (("now", stream_unit.FLOAT16_STREAM_SCALE), ("other", 0.125)):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream_unit, "FLOAT16_STREAM_SCALE", scale)
            export_graph(opened, folder, precision)
        graphs[name] = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    assert graphs["now"].SerializeToString(deterministic=True) == graphs["other"].SerializeToString(deterministic=True)
