"""Speed of the CPU operators next to what else the machine can do, measured side by side; run by `benchmarks/cpu.py`.

Lightning is compared with ONNX Runtime's own `com.microsoft::LinearAttention` (its recurrence alone; ours includes
norms, RoPE and gate), InfLLM-v2 with the rate of torch's float32 matrix product. The two sides of a ratio run
alternately, so that a busy machine slows both. Results that differ from the reference stop the benchmark.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sala_export.ops.common.contract import Contract
from sala_export.ops.infllmv2_attention import reference as sparse_reference
from sala_export.ops.infllmv2_attention import schema as sparse_schema
from sala_export.ops.lightning_attention import reference as lightning_reference
from sala_export.ops.lightning_attention import schema as lightning_schema

Array = NDArray[Any]

HEADS, KV_HEADS, DIM = 32, 2, 128
GEMM_SIZE = 2048
TOLERANCE = 1e-5
"""Of the largest value, against the reference in float64."""

ELEMENTS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint16): TensorProto.BFLOAT16,
}
"""ONNX's types of our arrays. NumPy has no bfloat16, so that its bits stand in integers."""

LIGHTNING: dict[str, Any] = dict(lightning_schema.PUBLISHED)
SPARSE: dict[str, Any] = dict(sparse_schema.PUBLISHED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Medians of alternating runs, in the unit named."""

    name: str
    unit: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    """How many times better we are: above 1 is faster than the peer."""
    goal: float | None
    spread: float
    """Half the range of the middle half of our runs, relative to the median."""


class Session:
    """A session whose inputs and outputs are bound once; updated outputs share the memory of their inputs."""

    def __init__(self, model: bytes, threads: int, library: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self.tensors: dict[str, Array] = {}

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self.tensors = inputs | outputs
        for name, x in inputs.items():
            self._binding.bind_input(name, "cpu", 0, ELEMENTS[x.dtype], x.shape, x.ctypes.data)
        for name, x in outputs.items():
            self._binding.bind_output(name, "cpu", 0, ELEMENTS[x.dtype], x.shape, x.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def one_node_model(
    domain: str, op_type: str, inputs: dict[str, Array], outputs: dict[str, Array], attributes: dict[str, Any]
) -> bytes:
    node = helper.make_node(op_type, list(inputs), list(outputs), domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info(name, ELEMENTS[x.dtype], x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info(name, ELEMENTS[x.dtype], None) for name, x in outputs.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def operator_session(
    contract: Contract, inputs: Sequence[Array], attributes: dict[str, Any], threads: int, library: Path
) -> Session:
    """Our operator with every `*_out` bound to the memory of its input."""
    by_name = dict(zip((t.name for t in contract.inputs), inputs, strict=True))
    y = np.empty((*inputs[0].shape[:2], HEADS * DIM), np.float32)
    outputs = {t.name: y if t.updates is None else by_name[t.updates] for t in contract.outputs}
    session = Session(one_node_model("sala", contract.onnx_type, by_name, outputs, attributes), threads, library)
    session.bind(by_name, outputs)
    return session


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call, in turns.

    Every turn begins with an unmeasured call: the idle threads of the other side still spin for a while.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, into in zip((first, second), seconds, strict=True):
            call()
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float]) -> float:
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def require_close(name: str, actual: Array, expected: torch.Tensor) -> None:
    error = float((torch.from_numpy(actual).double() - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise SystemExit(f"{name}: error {error:.2g} of the largest value, more than {TOLERANCE:.0e}; nothing measured")


def lightning_inputs(tokens: int) -> list[Array]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    angle = np.arange(tokens)[:, None] * 1e4 ** (-np.arange(0, DIM, 2) / DIM)
    cos_sin = np.concatenate((np.cos(angle), np.sin(angle)), axis=1).astype(np.float32)[None]
    norms = [np.ones(DIM, np.float32), np.ones(DIM, np.float32), np.ones(HEADS * DIM, np.float32)]
    return [normal(1, tokens, 4 * HEADS * DIM), *norms, cos_sin, normal(1, HEADS, DIM, DIM)]


def linear_attention_session(tokens: int, threads: int) -> Session:
    """ONNX Runtime's own operator with our decays: [1, T, H D] each of query, key, value."""
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.standard_normal((1, tokens, HEADS * DIM), dtype=np.float32) for name in ("query", "key", "value")
    }
    slopes = lightning_reference.decay_slopes(HEADS).numpy()
    inputs["past_state"] = np.zeros((1, HEADS, DIM, DIM), np.float32)
    inputs["decay"] = np.broadcast_to(-slopes, (1, tokens, HEADS)).copy()
    attributes = {"update_rule": "gated", "q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": LIGHTNING["scale"]}
    outputs = {"output": np.empty_like(inputs["query"]), "present_state": inputs["past_state"].copy()}
    session = Session(one_node_model("com.microsoft", "LinearAttention", inputs, outputs, attributes), threads)
    session.bind(inputs, outputs)
    return session


def compare_lightning(tokens: int, rounds: int, threads: int, library: Path, goal: float | None) -> Comparison:
    inputs = lightning_inputs(tokens)
    expected, _ = lightning_reference.lightning_attention(*(torch.from_numpy(x).double() for x in inputs), **LIGHTNING)
    ours = operator_session(lightning_schema.CONTRACT, inputs, LIGHTNING, threads, library)
    ours.run()
    require_close("LightningAttention", ours.tensors["y"], expected)
    peer = linear_attention_session(tokens, threads)
    mine, theirs = alternate(ours.run, peer.run, rounds)
    per_token = 1e6 / tokens
    return Comparison(
        name=f"LightningAttention, T={tokens}",
        unit="us/token",
        ours=statistics.median(mine) * per_token,
        peer_name="ONNX Runtime LinearAttention",
        peer=statistics.median(theirs) * per_token,
        ratio=statistics.median(theirs) / statistics.median(mine),
        goal=goal,
        spread=spread(mine),
    )


def sparse_inputs(tokens: int, context: int) -> list[Array]:
    """The last `tokens` of a context, with random keys and values before them."""
    rng = np.random.default_rng(1)
    capacity = [context, context, (context - 32) // 16 + 1, (context - 128) // 64 + 1]
    caches = [rng.standard_normal((1, KV_HEADS, rows, DIM), dtype=np.float32) for rows in capacity]
    keys = torch.from_numpy(caches[0])
    for cache, size, stride in ((caches[2], 32, 16), (caches[3], 128, 64)):
        torch.from_numpy(cache).copy_(keys.unfold(2, size, stride).mean(-1))
    qkvg = rng.standard_normal((1, tokens, 2 * (HEADS + KV_HEADS) * DIM), dtype=np.float32)
    return [qkvg, np.array([context - tokens], np.int32), np.array([context], np.int32), *caches]


def sparse_flops(tokens: int, context: int) -> int:
    """Multiplications and additions that the rule needs: scores of visible k2, of the k1 that can matter, attention."""
    total = 0
    for t in range(context - tokens, context):
        own = t // 64
        candidates = max(0, own - 32 - 1)
        k2 = max(0, (t - 127) // 64 + 1)
        attended = min(own, 95) * 64 + t % 64 + 1
        total += 2 * HEADS * DIM * (k2 + 4 * candidates + 2 * attended)
    return total


def check_sparse(ours: Session, inputs: Sequence[Array], rows: int = 4) -> None:
    """Compares the last rows with the reference; a row whose selection rounding may change is let off."""
    tail = [torch.from_numpy(x.copy()).double() if x.dtype == np.float32 else torch.from_numpy(x) for x in inputs]
    expected = sparse_reference.infllmv2_attention(
        tail[0][:, -rows:], tail[1] + tail[0].shape[1] - rows, tail[2], *tail[3:], **SPARSE
    )
    actual = ours.tensors["y"][0, -rows:]
    error = (torch.from_numpy(actual).double() - expected[0]).abs().amax(-1) / expected.abs().max()
    if not error.median() <= TOLERANCE:
        raise SystemExit(f"InfLLMv2Attention: error {float(error.median()):.2g} of the largest value; nothing measured")


def compare_sparse(tokens: int, context: int, rounds: int, threads: int, library: Path, goal: float) -> Comparison:
    inputs = sparse_inputs(tokens, context)
    ours = operator_session(sparse_schema.CONTRACT, inputs, SPARSE, threads, library)
    ours.run()
    check_sparse(ours, inputs)
    torch.set_num_threads(threads)
    a, b, c = torch.randn(3, GEMM_SIZE, GEMM_SIZE)
    mine, theirs = alternate(ours.run, lambda: torch.mm(a, b, out=c), rounds)
    rate = sparse_flops(tokens, context) / statistics.median(mine) * 1e-9
    gemm_rate = 2 * GEMM_SIZE**3 / statistics.median(theirs) * 1e-9
    return Comparison(
        name=f"InfLLMv2Attention, T={tokens} at {context}",
        unit="GFLOP/s",
        ours=rate,
        peer_name=f"torch float32 matrix product, {GEMM_SIZE}",
        peer=gemm_rate,
        ratio=rate / gemm_rate,
        goal=goal,
        spread=spread(mine),
    )


def compare_caches(tokens: int, context: int, short: str, rounds: int, threads: int, library: Path) -> Comparison:
    """The operator with caches of 16 bits, `bfloat16` or `float16`, beside itself with caches of 32 bits."""
    wide = sparse_inputs(tokens, context)
    narrow = [*wide[:3], *(in_16_bits(x, short) for x in wide[3:])]
    ours = operator_session(sparse_schema.CONTRACT, narrow, SPARSE, threads, library)
    peer = operator_session(sparse_schema.CONTRACT, wide, SPARSE, threads, library)
    mine, theirs = alternate(ours.run, peer.run, rounds)
    return Comparison(
        name=f"InfLLMv2Attention, T={tokens} at {context}, {short}",
        unit="ms",
        ours=statistics.median(mine) * 1e3,
        peer_name="caches of float32",
        peer=statistics.median(theirs) * 1e3,
        ratio=statistics.median(theirs) / statistics.median(mine),
        goal=1.0,
        spread=spread(mine),
    )


def in_16_bits(x: Array, dtype: str) -> Array:
    """Numbers rounded to `bfloat16`, as their bits, or to `float16`."""
    if dtype == "float16":
        return x.astype(np.float16)
    bits: Array = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return bits


def table(rows: Sequence[Comparison]) -> str:
    lines = [f"{'operator':<52} {'ours':>10} {'peer':>10} {'unit':<9} {'ratio':>6} {'goal':>6} {'spread':>7}  peer"]
    for row in rows:
        goal = "-" if row.goal is None else f"{row.goal:.2f}"
        lines.append(
            f"{row.name:<52} {row.ours:>10.1f} {row.peer:>10.1f} {row.unit:<9} {row.ratio:>6.2f} {goal:>6} "
            f"{row.spread:>6.0%}  {row.peer_name}"
        )
    return "\n".join(lines)
