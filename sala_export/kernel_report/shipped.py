"""Finds the cubins of the installed plugin library, which engines run, and what the library says about them."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BuildError


@dataclass(frozen=True, kw_only=True, slots=True)
class MainLoopProduct:
    """One product [m, k] times [k, n] of a kernel's innermost loop; `ops/common/launch.py: Product` in numbers."""

    m: int
    n: int
    k: int
    operand: str
    feeds_product: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedKernel:
    """One cubin and everything that it serves."""

    operator: str
    kernel: str
    sm: int
    sequences: tuple[str, ...]
    """`prefill`, `decode`, or both."""
    activations: tuple[str, ...]
    variants: tuple[Mapping[str, int], ...]
    constants: Mapping[str, int]
    num_stages: int
    threads: int
    dynamic_shared_bytes: int
    main_loop: tuple[MainLoopProduct, ...]
    cubin: bytes


def shipped_architectures(library: Path) -> frozenset[int]:
    """Architectures that the plugin library has kernels for, by 10 * major + minor. Raises: as `shipped_kernels`."""
    return frozenset(entry["sm"] for entry in _images(_loaded(library)))


def shipped_kernels(library: Path) -> tuple[ShippedKernel, ...]:
    """Every cubin inside the plugin library.

    Raises: BuildError if the library was built by another release, which did not say what it holds.
    """
    loaded = _loaded(library)
    image = loaded.salaKernelImage
    image.restype = ctypes.c_void_p
    image.argtypes = (ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t))
    found = []
    for number, entry in enumerate(_images(loaded)):
        size = ctypes.c_size_t()
        address = image(number, ctypes.byref(size))
        found.append(
            ShippedKernel(
                operator=entry["operator"],
                kernel=entry["kernel"],
                sm=entry["sm"],
                sequences=tuple(entry["sequences"]),
                activations=tuple(entry["activations"]),
                variants=tuple(entry["variants"]),
                constants=entry["constants"],
                num_stages=entry["num_stages"],
                threads=entry["threads"],
                dynamic_shared_bytes=entry["dynamic_shared_bytes"],
                main_loop=tuple(MainLoopProduct(**product) for product in entry["main_loop"]),
                cubin=ctypes.string_at(address, size.value),
            )
        )
    return tuple(found)


def _loaded(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    if not hasattr(loaded, "salaKernelIndex"):
        raise BuildError(f"{library} does not list its kernels: install the package again")
    return loaded


def _images(loaded: ctypes.CDLL) -> list[dict[str, Any]]:
    loaded.salaKernelIndex.restype = ctypes.c_char_p
    images: list[dict[str, Any]] = json.loads(loaded.salaKernelIndex())["images"]
    return images
