"""The cubins of the plugin library on the GPU present, launched from Python with the arguments that Triton would get.

So the code that ships is checked and timed by the same programs as the code that Triton compiles on a machine: a
launch of a bound call takes its cubin in place of its Triton kernel, and nothing else changes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sala_export.installation import plugin_library
from sala_export.kernel_report.shipped import ShippedKernel, shipped_kernels
from sala_export.ops.common.targets import serving_architecture
from sala_export.ops.common.triton_run import BoundCall, BoundLaunch
from sala_export.specs import ComputeCapability

_MAX_DYNAMIC_SHARED = 8
"""`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`."""
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: the launch is dependent."""
_INVALID_VALUE = 1
"""`CUDA_ERROR_INVALID_VALUE`: how `cuFuncGetParamInfo` says that there are no more parameters."""


class ShippedError(RuntimeError):
    """A cubin that is missing, that the driver refuses, or whose parameters are not those of its launch."""


class _LaunchAttribute(ctypes.Structure):
    """`CUlaunchAttribute`; of the 64 bytes of its value, a flag is the first int."""

    _fields_ = [("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int * 16)]


class _LaunchConfig(ctypes.Structure):
    """`CUlaunchConfig`."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    ]


class CudaDriver:
    """The few functions of CUDA's driver that launch a cubin. Needs a current context, as torch makes one."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        """Raises: ShippedError if there is no driver."""
        try:
            self._library = ctypes.CDLL(library)
        except OSError:
            raise ShippedError(f"{library} is not here: shipped cubins need NVIDIA's driver") from None

    def call(self, function: str, *arguments: Any) -> None:
        """Raises: ShippedError naming the function and CUDA's error."""
        if result := self.result(function, *arguments):
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            raise ShippedError(f"{function}: {(text.value or b'unknown').decode()} (CUDA error {result})")

    def result(self, function: str, *arguments: Any) -> int:
        """CUDA's error number, 0 for none."""
        code: int = getattr(self._library, function)(*arguments)
        return code


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedCubin:
    """A cubin on a GPU. Stands where a Triton kernel does: `cubin[grid](**arguments, **options)`."""

    driver: CudaDriver
    shipped: ShippedKernel
    function: ctypes.c_void_p
    parameter_bytes: tuple[int, ...]
    """Of every parameter, Triton's own after those that are declared."""
    parameters: tuple[str, ...]
    """Names of the declared ones, in order."""

    @property
    def __name__(self) -> str:
        return self.shipped.kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *, launch_pdl: bool = False, **arguments: Any) -> None:
        values = [_as_c(arguments[name]) for name in self.parameters]
        values += [ctypes.c_void_p(None)] * (len(self.parameter_bytes) - len(values))
        if [ctypes.sizeof(value) for value in values] != list(self.parameter_bytes):
            raise ShippedError(
                f"{self.shipped.kernel}: arguments of {[ctypes.sizeof(value) for value in values]} bytes, "
                f"the cubin declares {list(self.parameter_bytes)}"
            )
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
        dependent = _LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, (1,))
        config = _LaunchConfig(
            (*grid, *(1,) * (3 - len(grid))),
            (self.shipped.threads, 1, 1),
            self.shipped.dynamic_shared_bytes,
            stream,
            ctypes.pointer(dependent),
            int(launch_pdl),
        )
        self.driver.call("cuLaunchKernelEx", ctypes.byref(config), self.function, pointers, None)


class Cubins:
    """Cubins by what they serve, each loaded when it is first asked for."""

    def __init__(self, kernels: Sequence[ShippedKernel], driver: CudaDriver, sm: int) -> None:
        self._kernels = [kernel for kernel in kernels if kernel.sm == sm]
        self._driver = driver
        self._sm = sm
        self._loaded: dict[int, LoadedCubin] = {}

    def bound(self, call: BoundCall, activation: str) -> BoundCall:
        """The call with cubins in place of Triton kernels.

        Raises: ShippedError if one is missing or the driver refuses it.
        """
        return replace(call, launches=tuple(self._bound(launch, activation) for launch in call.launches))

    def _bound(self, launch: BoundLaunch, activation: str) -> BoundLaunch:
        index = self._find(launch, activation)
        if index not in self._loaded:
            self._loaded[index] = self._load(self._kernels[index], launch)
        cubin = self._loaded[index]
        options = {name: value for name, value in launch.options.items() if name == "launch_pdl"}
        return replace(launch, launch=replace(launch.launch, kernel=cubin), options=options)

    def _find(self, launch: BoundLaunch, activation: str) -> int:
        """The cubin that was compiled with the constants, warps and stages of the launch."""
        for index, kernel in enumerate(self._kernels):
            if (
                kernel.kernel == launch.launch.name
                and activation in kernel.activations
                and kernel.threads == 32 * launch.options["num_warps"]
                and kernel.num_stages == launch.options["num_stages"]
                and kernel.constants.items() <= launch.arguments.items()
            ):
                return index
        raise ShippedError(
            f"{launch.launch.name} in {activation}: the plugin library holds no cubin of it for SM{self._sm} with the "
            "tile of tiles.py: install the package again"
        )

    def _load(self, kernel: ShippedKernel, launch: BoundLaunch) -> LoadedCubin:
        driver = self._driver
        library, handle, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        image = ctypes.create_string_buffer(kernel.cubin, len(kernel.cubin))
        driver.call("cuLibraryLoadData", ctypes.byref(library), image, None, None, 0, None, None, 0)
        driver.call("cuLibraryGetKernel", ctypes.byref(handle), library, kernel.kernel.encode())
        driver.call("cuKernelGetFunction", ctypes.byref(function), handle)
        device = torch.cuda.current_device() if torch.cuda.is_available() else 0
        driver.call("cuKernelSetAttribute", _MAX_DYNAMIC_SHARED, kernel.dynamic_shared_bytes, handle, device)
        return LoadedCubin(
            driver=driver,
            shipped=kernel,
            function=function,
            parameter_bytes=self._parameter_bytes(function),
            parameters=tuple(name for name in launch.arguments if name not in kernel.constants),
        )

    def _parameter_bytes(self, function: ctypes.c_void_p) -> tuple[int, ...]:
        """Sizes of a loaded kernel's parameters, as its own metadata has them."""
        found: list[int] = []
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        while True:
            arguments = (function, ctypes.c_size_t(len(found)), ctypes.byref(offset), ctypes.byref(size))
            code = self._driver.result("cuFuncGetParamInfo", *arguments)
            if code == _INVALID_VALUE and found:
                return tuple(found)
            if code:
                raise ShippedError(f"cuFuncGetParamInfo: CUDA error {code}: update the driver, it needs CUDA 12.4")
            found.append(size.value)


@functools.cache
def installed_cubins() -> Cubins:
    """Those of the installed plugin library for the current GPU.

    Raises: BuildError if the library is not installed; ShippedError if it does not serve the GPU.
    """
    capability = ComputeCapability(*torch.cuda.get_device_capability())
    kernels = shipped_kernels(plugin_library())
    sm = serving_architecture(capability, {kernel.sm for kernel in kernels})
    if sm is None:
        raise ShippedError(f"the plugin library holds no cubins for {capability.sm}")
    return Cubins(kernels, CudaDriver(), sm)


def _as_c(value: Any) -> Any:
    """An argument as the driver takes it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int32(value)
