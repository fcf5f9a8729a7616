"""Shipped cubins launched from Python, on the fake driver: the kernels, grids and arguments of a Triton launch."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.plugin_calls import LIGHTNING, SPARSE, PluginCall

from benchmarks.shipped_cubins import Cubins, CudaDriver, ShippedError
from sala_export.installation import plugin_library
from sala_export.kernel_report.shipped import shipped_kernels
from sala_export.ops.common.contract import ACTIVATION
from sala_export.ops.common.triton_run import BoundCall, bind_kernels

SM = 90
CALLS = pytest.mark.parametrize(
    "call",
    [replace(call, dims={**call.dims, "T": tokens}) for call in (LIGHTNING, SPARSE) for tokens in (37, 1)],
    ids=lambda call: f"{call.contract.name}-{call.dims['T']}",
)


class FakeDriver(CudaDriver):
    """A fake CUDA driver, and what was asked of it."""

    def __init__(self, native_build: Path) -> None:
        path = native_build / "cuda_in_python" / "libcuda.so"
        super().__init__(str(path))
        self._fake = ctypes.CDLL(str(path))
        self._fake.fake_cuda_take_events.restype = ctypes.c_char_p
        self.events()

    def events(self) -> list[dict[str, Any]]:
        """Since the last call."""
        events: list[dict[str, Any]] = json.loads(self._fake.fake_cuda_take_events())
        return events


@pytest.fixture
def driver(native_build: Path) -> FakeDriver:
    return FakeDriver(native_build)


def bound(call: PluginCall) -> BoundCall:
    """The call with Triton kernels, on tensors that nobody reads."""
    inputs = [
        torch.empty(
            list(call.shape_of(tensor)),
            dtype=getattr(torch, call.activation if tensor.dtype == ACTIVATION else tensor.dtype),
        )
        for tensor in call.contract.inputs
    ]
    return bind_kernels(call.contract, call.kernel_set, inputs, call.attributes, sm=SM)


def passed(value: Any) -> list[int]:
    """An argument as the driver sees it: its bytes, and what is in them."""
    if isinstance(value, torch.Tensor):
        return [8, value.data_ptr()]
    return [4, int(np.float32(value).view(np.uint32)) if isinstance(value, float) else value % 2**32]


@CALLS
def test_launches_are_those_of_triton(driver: FakeDriver, call: PluginCall) -> None:
    ours = bound(call)
    shipped = Cubins(shipped_kernels(plugin_library()), driver, SM).bound(ours, "bfloat16")
    loaded = [event for event in driver.events() if event["event"] == "load"]
    assert [event["sm"] for event in loaded] == [SM] * len({launch.launch.name for launch in ours.launches})
    for launch, cubin in zip(ours.launches, shipped.launches, strict=True):
        assert cubin.launch.name == launch.launch.name
        cubin.launch.kernel[cubin.grid](**cubin.arguments, **cubin.options)  # type: ignore[index]
        (event,) = driver.events()
        declared = [p.name for p in launch.launch.kernel.params if not p.is_constexpr]  # type: ignore[attr-defined]
        told = [passed(launch.arguments[name]) for name in declared]
        assert event["kernel"] == launch.launch.name
        assert event["grid"] == list(launch.grid)
        assert event["block"] == [32 * launch.options["num_warps"], 1, 1]
        assert event["is_dependent"] == launch.launch.is_dependent(SM)
        assert event["arguments"][: len(told)] == told
        assert all(argument == [8, 0] for argument in event["arguments"][len(told) :]), "Triton's own are null"


def test_a_cubin_is_loaded_once_with_its_shared_memory_allowed(driver: FakeDriver) -> None:
    cubins = Cubins(shipped_kernels(plugin_library()), driver, SM)
    cubins.bound(bound(LIGHTNING), "bfloat16")
    first = driver.events()
    prepared = {event["kernel"]: event for event in first if event["event"] == "allow_shared"}
    assert prepared["lightning_prefill_kernel"]["bytes"] > 48 << 10
    cubins.bound(bound(LIGHTNING), "bfloat16")
    assert driver.events() == []


def test_launch_without_a_cubin_is_named(driver: FakeDriver) -> None:
    cubins = Cubins(shipped_kernels(plugin_library()), driver, SM)
    with pytest.raises(ShippedError, match="lightning_prefill_kernel in float32: the plugin library holds no cubin"):
        cubins.bound(bound(LIGHTNING), "float32")


def test_arguments_that_the_cubin_does_not_take_are_refused(driver: FakeDriver) -> None:
    shipped = Cubins(shipped_kernels(plugin_library()), driver, SM).bound(bound(LIGHTNING), "bfloat16")
    launch = shipped.launches[0]
    wrong = replace(launch.launch.kernel, parameters=launch.launch.kernel.parameters[1:])  # type: ignore[attr-defined]
    with pytest.raises(ShippedError, match=rf"{launch.launch.name}: arguments of .* bytes, the cubin declares"):
        wrong[launch.grid](**launch.arguments)


def test_refusal_of_the_driver_is_named(driver: FakeDriver) -> None:
    library, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    cubin = shipped_kernels(plugin_library())[0].cubin
    driver.call("cuLibraryLoadData", ctypes.byref(library), cubin, None, None, 0, None, None, 0)
    with pytest.raises(ShippedError, match=r"cuLibraryGetKernel: named symbol not found \(CUDA error 500\)"):
        driver.call("cuLibraryGetKernel", ctypes.byref(kernel), library, b"no_such_kernel")


def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(ShippedError, match=r"libno-cuda\.so is not here: shipped cubins need NVIDIA's driver"):
        CudaDriver("libno-cuda.so")
