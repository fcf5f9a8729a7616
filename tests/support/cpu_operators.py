"""One operator on the CPU through ONNX Runtime: builds the library and one-node graphs, and runs them."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from filelock import FileLock
from onnx import TensorProto, helper
from torch import Tensor

from sala_export.ops.common.contract import ACTIVATION, Contract
from sala_export.ops.common.contract import Tensor as ContractTensor

REPOSITORY = Path(__file__).parents[2]
given_library: Path | None = None
"""The value of the option --operators."""

SIMD_LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")
"""The levels that all kernels are compiled for, in rising order."""
PRODUCT_LEVELS = ("baseline", "avx2", "avx2_vnni", "avx512", "avx512_bf16", "amx", "neon_dot", "neon_matrix")
"""Those, and the levels that only products of stored weights are compiled for."""

_ELEMENTS = {
    "X": TensorProto.FLOAT,
    "float32": TensorProto.FLOAT,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "int32": TensorProto.INT32,
}
_CACHE_ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float16: TensorProto.FLOAT16,
}


_LIBRARY = "libsala_ort.so"
_INSTALLED_FROM = REPOSITORY / "build" / "native" / "plugins" / "onnxruntime"
"""Where scripts/install.sh compiled the library that it installed."""
_BUILD = REPOSITORY / "build" / "operators"
"""Where the tests compile it. Kept between test runs: the first build takes a minute, the next seconds."""


@functools.cache
def build_directory() -> Path:
    """Where the library was compiled from the sources of this checkout: by its installation, or else now."""
    compiled = _INSTALLED_FROM / _LIBRARY
    if compiled.is_file() and compiled.stat().st_mtime > max(path.stat().st_mtime for path in _sources()):
        return _INSTALLED_FROM
    _BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(_BUILD / ".lock"):
        _build()
    return _BUILD


def _sources() -> Iterator[Path]:
    """The files that the library is compiled from, and a few more."""
    yield REPOSITORY / "CMakeLists.txt"
    for folder in ("plugins", "runtime/include", "runtime/src/engines/onnxruntime"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".cc", ".h", ".map") or path.name == "CMakeLists.txt":
                yield path


def _build() -> None:
    for command in (
        ["cmake", "-S", REPOSITORY / "plugins/onnxruntime", "-B", _BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"],
        ["cmake", "--build", _BUILD, "--target", "sala_ort"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def library() -> Path:
    """The library that the tests are of: the one that was given, or else the one of `build_directory`."""
    return given_library or build_directory() / _LIBRARY


def _native() -> ctypes.CDLL:
    native = ctypes.CDLL(str(library()))
    native.sala_ort_simd_level.restype = ctypes.c_char_p
    return native


def _runs(level: str) -> bool:
    native = _native()
    best = native.sala_ort_simd_level()
    runs: bool = native.sala_ort_set_simd_level(level.encode()) == 0
    assert native.sala_ort_set_simd_level(best) == 0
    return runs


@functools.cache
def runnable_simd_levels() -> tuple[str, ...]:
    """Those of SIMD_LEVELS that this machine has."""
    return tuple(filter(_runs, SIMD_LEVELS))


@functools.cache
def runnable_product_levels() -> tuple[str, ...]:
    """Those of PRODUCT_LEVELS that this machine has."""
    return tuple(filter(_runs, PRODUCT_LEVELS))


@contextmanager
def simd_level(name: str) -> Iterator[None]:
    """Runs the operators with the instructions of one level."""
    native = _native()
    before = native.sala_ort_simd_level()
    assert native.sala_ort_set_simd_level(name.encode()) == 0
    try:
        assert native.sala_ort_simd_level().decode() == name
        yield
    finally:
        native.sala_ort_set_simd_level(before)


def is_cache(contract: Contract, tensor: ContractTensor) -> bool:
    """A tensor of the activations' type that is updated in place, or the new value of one."""
    updated = {output.updates for output in contract.outputs}
    return tensor.dtype == ACTIVATION and (tensor.name in updated or tensor.updates is not None)


def model(
    contract: Contract, attributes: Mapping[str, Any], cache_dtype: torch.dtype = torch.float32
) -> onnx.ModelProto:
    """A graph of the operator alone; every dimension is free."""

    def value(tensor: ContractTensor) -> onnx.ValueInfoProto:
        element = _CACHE_ELEMENTS[cache_dtype] if is_cache(contract, tensor) else _ELEMENTS[tensor.dtype]
        shape = [f"{tensor.name}_{axis}" for axis in range(len(tensor.shape))]
        return helper.make_tensor_value_info(tensor.name, element, shape)

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
        [value(t) for t in contract.inputs],
        [value(t) for t in contract.outputs],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("sala", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session_options(threads: int = 2) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library()))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # tests that provoke an error read it from the exception
    return options


class CpuOperator:
    """An ONNX Runtime session of one operator."""

    def __init__(
        self,
        contract: Contract,
        attributes: Mapping[str, Any],
        threads: int = 2,
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        options = session_options(threads)
        self._contract = contract
        serialized = model(contract, attributes, cache_dtype).SerializeToString()
        self._session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs; the inputs are left as they are."""
        names = [t.name for t in self._contract.inputs]
        feed = {name: _value(x.contiguous()) for name, x in zip(names, inputs, strict=True)}
        outputs = self._session.run_with_ort_values(None, feed)
        return tuple(torch.utils.dlpack.from_dlpack(value) for value in outputs)

    def update(self, *inputs: Tensor) -> Tensor:
        """Output `y`; each other output is bound to the memory of the input that it updates."""
        binding = self._session.io_binding()
        by_name = dict(zip((t.name for t in self._contract.inputs), inputs, strict=True))
        for name, x in by_name.items():
            assert x.is_contiguous()
            binding.bind_input(name, "cpu", 0, _element(x), x.shape, x.data_ptr())
        for output in self._contract.outputs:
            if output.updates is None:
                binding.bind_output(output.name, "cpu")
            else:
                x = by_name[output.updates]
                binding.bind_output(output.name, "cpu", 0, _element(x), x.shape, x.data_ptr())
        self._session.run_with_iobinding(binding)
        return torch.from_numpy(binding.get_outputs()[0].numpy())


def _element(tensor: Tensor) -> int:
    return _CACHE_ELEMENTS.get(tensor.dtype) or _ELEMENTS[str(tensor.dtype).removeprefix("torch.")]


def _value(tensor: Tensor) -> onnxruntime.OrtValue:
    # NumPy has neither bfloat16 nor fp8.
    numbers = tensor.view({1: torch.uint8, 2: torch.int16, 4: tensor.dtype}[tensor.element_size()])
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(numbers.numpy(), _element(tensor))


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
