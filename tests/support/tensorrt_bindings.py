"""NVIDIA's Python bindings, driven through everything that the engine does with TensorRT, on the fake TensorRT.

A program, for a process of its own: what it is wrong about ends the process. Prints what the bindings were answered and
what the fake recorded, as JSON.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PLAN = b"""fake-plan activation 4096 1024
tensor 1 input_ids 8 2 -1 -1 1 16 1 1
tensor 2 logits 0 2 -1 50
end
"""


class FakeControl:
    """The part of `FakeTensorRt` that is told apart by what it records."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        self._library.fake_tensorrt_events.restype = ctypes.c_char_p

    def be(self, flavour: str, version: str) -> None:
        major, minor, patch, build = map(int, version.split("."))
        self._library.fake_tensorrt_be(flavour.encode(), major, minor, patch, build)

    def events(self) -> list[str]:
        return self._library.fake_tensorrt_events().decode().splitlines()


def drive(trt: Any, flavour: str) -> dict[str, object]:
    """Everything that the engine does with TensorRT, done by NVIDIA's bindings; what they were answered."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: object, message: str) -> None:
            answers.setdefault("log", []).append(message)

    answers: dict[str, Any] = {}
    logger = Logger()
    runtime = trt.Runtime(logger)
    assert runtime.deserialize_cuda_engine(PLAN) is None  # host code is refused, which the logger is told
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(PLAN)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    answers |= {
        "profiles": engine.num_optimization_profiles,
        "tensors": names,
        "modes": [engine.get_tensor_mode(name).name for name in names],
        "dtypes": [engine.get_tensor_dtype(name).name for name in names],
        "shape": list(engine.get_tensor_shape("logits")),
        "largest": [list(engine.get_tensor_profile_shape("input_ids", profile)[2]) for profile in (0, 1)],
        "activations": [engine.get_device_memory_size_for_profile_v2(profile) for profile in (0, 1)],
    }
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(user_managed)
    buffer = np.zeros(64, np.float32)
    assert context.set_optimization_profile_async(1, 0)
    context.set_device_memory(buffer.ctypes.data, 1024)
    assert not context.execute_async_v3(0)  # no addresses yet: the log says which
    assert context.set_tensor_address("input_ids", buffer.ctypes.data)
    assert context.set_tensor_address("logits", buffer.ctypes.data)
    assert context.set_input_shape("input_ids", (1, 1))
    assert not context.set_input_shape("input_ids", (1, 2))
    assert context.execute_async_v3(0)
    if flavour == "rtx":
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user_managed)
        cache = config.create_runtime_cache()
        config.set_runtime_cache(cache)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert cache.deserialize(b"compiled 41")
        cached = engine.create_execution_context(config)
        assert cached.is_stream_capturable(0)
        answers["cache"] = bytes(cache.serialize()).decode()
    drive_allocator(trt, runtime, answers)
    return answers


def drive_allocator(trt: Any, runtime: Any, answers: dict[str, Any]) -> None:
    """The other direction: an allocator of NVIDIA's making, called where our own has its functions."""
    calls: list[str] = []

    class Recorder(trt.IGpuAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def allocate(self, size: int, alignment: int, flags: int) -> int:
            calls.append(f"allocate {size} {alignment}")
            return 4096

        def deallocate(self, memory: int) -> bool:
            calls.append(f"deallocate {memory}")
            return True

    allocator = Recorder()
    runtime.gpu_allocator = allocator
    control = ctypes.CDLL(None)
    control.fake_tensorrt_use_allocator()
    runtime.gpu_allocator = None
    answers["allocator"] = calls


def load_bindings(module: Path, libraries: list[Path]) -> Any:
    """The bindings alone: their package would load the real libraries first."""
    for library in libraries:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location(module.stem, module)
    assert spec is not None
    assert spec.loader is not None
    bindings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bindings)
    return bindings


def main(flavour: str, version: str, module: str, *other: str) -> None:
    """`other`: flavour and version whose positions the fake shall have instead."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.fake_gpu import empty_library, fake_tensorrt

    major = version.partition(".")[0]
    if flavour == "rtx":
        library, others = f"libtensorrt_rtx.so.{major}", [f"libtensorrt_onnxparser_rtx.so.{major}"]
    else:
        library = f"libnvinfer.so.{major}"
        others = [f"libnvonnxparser.so.{major}", f"libnvinfer_plugin.so.{major}"]
    control = FakeControl(fake_tensorrt(library))
    control.be(*(other or (flavour, version)))
    answers = drive(load_bindings(Path(module), [empty_library(name) for name in others]), flavour)
    sys.stdout.write(json.dumps({"answers": answers, "events": control.events()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
