"""TensorRT proper, which times kernels while it builds, on the GPU of this machine and for it."""

from __future__ import annotations

import ctypes
import importlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedError
from ..specs import ComputeCapability, FlavourName
from .recipe import Target, names_of
from .tensorrt_rtx import SERVED

# Values of enum CUdevice_attribute in cuda.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


def present_capability() -> ComputeCapability | None:
    """Compute capability of the first CUDA device, as the driver reports it. None without a driver or a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, values = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for value, attribute in zip(values, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return ComputeCapability(values[0].value, values[1].value)


@dataclass(frozen=True, slots=True)
class TensorRT:
    """The flavour `tensorrt`. See `flavour.Flavour`."""

    name = FlavourName.TENSORRT
    title = "TensorRT"
    present: Callable[[], ComputeCapability | None] = present_capability

    def check(self, target: Target) -> None:
        """Refuse any GPU but that of this machine. Raises: UnsupportedError."""
        wanted, names = target.compute_capabilities, names_of(target.gpus)
        elsewhere = "build there"
        is_like_this = {recipe.machine for recipe in target.gpus} == {platform.machine()}
        if is_like_this and all(capability.sm in SERVED for capability in wanted):
            elsewhere += f", or use --flavour rtx to build for the {names} here"
        if len(wanted) > 1:
            raise UnsupportedError(
                f"--flavour tensorrt builds for the GPU of this machine alone, not for {names} at once: name one "
                "--gpu, or use --flavour rtx"
            )
        here = self.present()
        if here is None:
            raise UnsupportedError(
                f"--flavour tensorrt builds on the GPU that it builds for, and this machine has none: {elsewhere}"
            )
        if here != wanted[0]:
            raise UnsupportedError(
                f"--flavour tensorrt builds for the GPU of this machine, {here.sm}, not for the {names}, "
                f"{wanted[0].sm}: {elsewhere}"
            )

    def load(self) -> Any:
        """Import `tensorrt`. Raises: UnsupportedError."""
        try:
            return importlib.import_module("tensorrt")
        except ImportError as error:
            raise UnsupportedError(
                f"TensorRT cannot be imported ({error}): install it with its Python module as NVIDIA distributes it, "
                "for its libraries are not in the package index; for an RTX card, use --flavour rtx"
            ) from None

    def set_targets(self, trt: Any, config: Any, capabilities: Sequence[ComputeCapability]) -> None:
        """Do nothing: the target is the GPU of this machine, which `check` compared with the recipe."""

    def targets(self, config: Any) -> tuple[ComputeCapability, ...]:
        """Return the capability of this machine's GPU. Raises: UnsupportedError if it is gone since `check`."""
        here = self.present()
        if here is None:
            raise UnsupportedError("the GPU of this machine cannot be reached any more: see the driver's log")
        return (here,)
