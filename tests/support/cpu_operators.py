"""One operator on the CPU through ONNX Runtime: builds the library and one-node graphs, and runs them."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from sala_export.ops.common.contract import Contract

REPOSITORY = Path(__file__).parents[2]
SIMD_LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")

_ELEMENTS = {"X": TensorProto.FLOAT, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


@functools.cache
def build_directory() -> Path:
    """Where the library was built, once per test run, from the sources of this checkout."""
    build = tempfile.mkdtemp(prefix="sala_ort_")
    atexit.register(shutil.rmtree, build, ignore_errors=True)
    source = str(REPOSITORY / "plugins" / "onnxruntime")
    for command in (
        ["cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"],
        ["cmake", "--build", build, "--target", "sala_ort"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Path(build)


def library() -> Path:
    return build_directory() / "libsala_ort.so"


def _native() -> ctypes.CDLL:
    native = ctypes.CDLL(str(library()))
    native.sala_ort_simd_level.restype = ctypes.c_char_p
    return native


@functools.cache
def runnable_simd_levels() -> tuple[str, ...]:
    """The levels of this machine, in rising order."""
    best = _native().sala_ort_simd_level().decode()
    return SIMD_LEVELS[: SIMD_LEVELS.index(best) + 1]


@contextmanager
def simd_level(name: str) -> Iterator[None]:
    """Runs the operators with the instructions of one level."""
    native = _native()
    assert native.sala_ort_set_simd_level(name.encode()) == 0
    try:
        assert native.sala_ort_simd_level().decode() == name
        yield
    finally:
        native.sala_ort_set_simd_level(runnable_simd_levels()[-1].encode())


def model(contract: Contract, attributes: Mapping[str, Any]) -> onnx.ModelProto:
    """A graph of the operator alone; every dimension is free."""

    def value(name: str, dtype: str, rank: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _ELEMENTS[dtype], [f"{name}_{axis}" for axis in range(rank)])

    node = helper.make_node(
        contract.onnx_type,
        [t.name for t in contract.inputs],
        [t.name for t in contract.outputs],
        domain="sala",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        contract.name,
        [value(t.name, t.dtype, len(t.shape)) for t in contract.inputs],
        [value(t.name, t.dtype, len(t.shape)) for t in contract.outputs],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("sala", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class CpuOperator:
    """An ONNX Runtime session of one operator."""

    def __init__(self, contract: Contract, attributes: Mapping[str, Any], threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(library()))
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # tests that provoke an error read it from the exception
        self._contract = contract
        serialized = model(contract, attributes).SerializeToString()
        self._session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs; the inputs are left as they are."""
        names = [t.name for t in self._contract.inputs]
        feed = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(np.asarray(x)) for x in self._session.run(None, feed))

    def update(self, *inputs: Tensor) -> Tensor:
        """Output `y`; each other output is bound to the memory of the input that it updates."""
        binding = self._session.io_binding()
        by_name = dict(zip((t.name for t in self._contract.inputs), inputs, strict=True))
        for name, x in by_name.items():
            assert x.is_contiguous()
            binding.bind_input(name, "cpu", 0, x.numpy().dtype, x.shape, x.data_ptr())
        for output in self._contract.outputs:
            if output.updates is None:
                binding.bind_output(output.name, "cpu")
            else:
                x = by_name[output.updates]
                binding.bind_output(output.name, "cpu", 0, np.float32, x.shape, x.data_ptr())
        self._session.run_with_iobinding(binding)
        return torch.from_numpy(binding.get_outputs()[0].numpy())


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
