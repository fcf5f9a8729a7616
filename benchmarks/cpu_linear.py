"""Products of the CPU operator `Linear` beside the bandwidth and the arithmetic rates of the machine.

python -m benchmarks.cpu_linear [--formats bfloat16,int4] [--json out.json]

One token reads every weight once: its rate is compared with the best rate at which torch reads memory in the same run.
512 tokens are compared with the best rate of a matrix product in the same run: torch in float32 for exact products,
torch in bfloat16 for fast ones, and ONNX Runtime's MatMulNBits for fast int4. The sides of a ratio run in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sala_export.installation import onnxruntime_operators
from sala_export.planner.cpu_rates import memory, reader

Array = NDArray[Any]

COLUMNS, ROWS = 4096, 16384
STREAMED_BYTES = 512 << 20
"""Weights that one token reads: many times the cache."""

ELEMENTS = {
    "float32": (TensorProto.FLOAT, 4.0),
    "bfloat16": (TensorProto.BFLOAT16, 2.0),
    "float16": (TensorProto.FLOAT16, 2.0),
    "float8_e4m3fn": (TensorProto.FLOAT8E4M3FN, 1.0),
    "mxfp8": (TensorProto.FLOAT8E4M3FN, 1.0),
    "int8": (TensorProto.INT8, 1.0),
    "int4": (TensorProto.INT32, 0.5),
    "nvfp4": (TensorProto.UINT8, 0.5),
}
"""Element type of the numbers or codes, and bytes of one number."""

SCALES = {
    "float8_e4m3fn": (TensorProto.FLOAT, np.float32(1), 1),
    "mxfp8": (TensorProto.UINT8, np.uint8(127), COLUMNS // 32),
    "int8": (TensorProto.FLOAT, np.float32(1), 1),
    "int4": (TensorProto.FLOAT16, np.float16(1), COLUMNS // 128),
    "nvfp4": (TensorProto.FLOAT8E4M3FN, np.uint8(0x38), COLUMNS // 16),
}
"""Element type of the scales, a scale of 1 in a type of numpy with the same bytes, and scales of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The best of several runs."""

    weights: str
    math: str
    tokens: int
    unit: str
    ours: float
    peer: float
    peer_name: str


class Session:
    """One node whose inputs are bound to memory that is already there."""

    def __init__(self, node: Any, inputs: dict[str, tuple[Array, int]], threads: int, library: Path | None) -> None:
        values = [helper.make_tensor_value_info(name, kind, None) for name, (_, kind) in inputs.items()]
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 20), (node.domain, 1))]
        model = helper.make_model(helper.make_graph([node], "one", values, [y]), opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        self._inputs = inputs
        for name, (array, kind) in inputs.items():
            self._binding.bind_input(name, "cpu", 0, kind, array.shape, array.ctypes.data)
        self._binding.bind_output("y", "cpu")

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def linear(kind: str, arithmetic: str, tokens: int, copies: int, threads: int, library: Path) -> Session:
    """Products of `tokens` inputs with `copies` weights [ROWS, COLUMNS] of ordinary numbers."""
    rng = np.random.default_rng(0)
    element, bytes_of_number = ELEMENTS[kind]
    x = rng.standard_normal((tokens, COLUMNS), dtype=np.float32)
    inputs: dict[str, tuple[Array, int]] = {"x": (x, int(TensorProto.FLOAT))}
    size = round(max(bytes_of_number, 1))
    for i in range(copies):
        codes: Array = rng.integers(0, 256, (ROWS, round(COLUMNS * bytes_of_number)), dtype=np.uint8)
        if size > 1:
            codes[:, size - 1 :: size] = 0x3C  # numbers below 1
            codes = codes.view(f"V{size}")
        if kind == "int4":
            codes = codes.view(np.int32)
        inputs[f"codes_{i}"] = (codes, int(element))
        if kind in SCALES:
            scale_element, one, count = SCALES[kind]
            inputs[f"scales_{i}"] = (np.full((ROWS, count), one), int(scale_element))
    attributes: dict[str, Any] = {"weights": kind, "math": arithmetic, "epilogue": "none", "global_scale": 1.0}
    node = helper.make_node("Linear", list(inputs), ["y"], domain="sala", **attributes)
    return Session(node, inputs, threads, library)


def int4_peer(tokens: int, threads: int) -> Session:
    """ONNX Runtime's own product with int4 weights and int8 inputs."""
    rng = np.random.default_rng(0)
    groups = COLUMNS // 128
    inputs: dict[str, tuple[Array, int]] = {
        "x": (rng.standard_normal((tokens, COLUMNS), dtype=np.float32), int(TensorProto.FLOAT)),
        "codes": (rng.integers(0, 256, (ROWS, groups, 64), dtype=np.uint8), int(TensorProto.UINT8)),
        "scales": (np.ones(ROWS * groups, np.float32), int(TensorProto.FLOAT)),
    }
    attributes: dict[str, Any] = {"K": COLUMNS, "N": ROWS, "bits": 4, "block_size": 128, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", list(inputs), ["y"], domain="com.microsoft", **attributes)
    return Session(node, inputs, threads, None)


def torch_product(dtype: torch.dtype, tokens: int) -> Callable[[], object]:
    x, w = torch.randn(tokens, COLUMNS).to(dtype), torch.randn(ROWS, COLUMNS).to(dtype)
    return lambda: torch.nn.functional.linear(x, w)


def best_seconds(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The least time of each call. Calls take turns, each after an unmeasured run of its own."""
    best = [math.inf] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            call()
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def decode(kind: str, arithmetic: str, rounds: int, threads: int, library: Path) -> Result:
    bytes_of_weight = ROWS * COLUMNS * ELEMENTS[kind][1]
    copies = max(1, round(STREAMED_BYTES / bytes_of_weight))
    session = linear(kind, arithmetic, 1, copies, threads, library)
    with reader([memory(STREAMED_BYTES)], threads) as read:
        ours, peer = best_seconds([session.run, read], rounds)
    scales = ROWS * SCALES[kind][1].nbytes * SCALES[kind][2] if kind in SCALES else 0
    return Result(
        weights=kind,
        math=arithmetic,
        tokens=1,
        unit="GB/s",
        ours=copies * (bytes_of_weight + scales) / ours * 1e-9,
        peer=STREAMED_BYTES / peer * 1e-9,
        peer_name="NumPy max",
    )


def prefill(kind: str, arithmetic: str, tokens: int, rounds: int, threads: int, library: Path) -> Result:
    session = linear(kind, arithmetic, tokens, 1, threads, library)
    peer: tuple[str, Callable[[], object]] = ("torch float32", torch_product(torch.float32, tokens))
    if arithmetic == "fast" and kind == "int4":
        peer = ("ONNX Runtime MatMulNBits", int4_peer(tokens, threads).run)
    elif arithmetic == "fast" and kind not in ("float32", "float16"):
        peer = ("torch bfloat16", torch_product(torch.bfloat16, tokens))
    ours, theirs = best_seconds([session.run, peer[1]], rounds)
    work = 2 * tokens * ROWS * COLUMNS * 1e-9
    return Result(
        weights=kind,
        math=arithmetic,
        tokens=tokens,
        unit="GFLOP/s",
        ours=work / ours,
        peer=work / theirs,
        peer_name=peer[0],
    )


def results(options: argparse.Namespace) -> Iterator[Result]:
    library = options.library or onnxruntime_operators()
    for kind in options.formats.split(","):
        for arithmetic in options.math.split(","):
            for tokens in (int(count) for count in options.tokens.split(",")):
                if tokens == 1:
                    yield decode(kind, arithmetic, options.rounds, options.threads, library)
                else:
                    yield prefill(kind, arithmetic, tokens, options.rounds, options.threads, library)


def line(result: Result) -> str:
    return (
        f"{result.weights:<14} {result.math:<6} {result.tokens:>6} {result.ours:>8.1f} {result.peer:>8.1f} "
        f"{result.unit:<8} {result.ours / result.peer:>6.2f}  {result.peer_name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=Path, help="libsala_ort.so to measure (default: the installed one)")
    parser.add_argument("--formats", default=",".join(ELEMENTS), help="how weights are stored (default: all ways)")
    parser.add_argument("--math", default="exact,fast", help="exact, fast, or both (the default)")
    parser.add_argument("--tokens", default="1,512", help="tokens of a product (default: 1,512)")
    parser.add_argument("--threads", type=int, default=2, help="threads that each side computes with (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side (default: 5)")
    parser.add_argument("--json", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = f"{'weights':<14} {'math':<6} {'tokens':>6} {'ours':>8} {'peer':>8} {'unit':<8} {'ratio':>6}  peer"
    sys.stdout.write(head + "\n")
    rows = []
    for result in results(options):
        rows.append(asdict(result))
        sys.stdout.write(line(result) + "\n")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
