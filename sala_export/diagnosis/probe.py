"""Loads one library and prints what it tells as JSON. It runs as a program of its own: a broken library may end it.

For example, `python probe.py onnxruntime libonnxruntime.so.1` prints `{"version": "1.22.0", "path": "/usr/lib/..."}`.
The first argument names the kind of library, the others where it may be, in the order in which it is looked for.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

_MAJOR, _MINOR = 75, 76
"""`CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR` of the CUDA driver's interface."""


class _OrtApiBase(ctypes.Structure):
    """`OrtApiBase` of ONNX Runtime's C interface."""

    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("get_version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def onnxruntime(library: ctypes.CDLL) -> Facts:
    """Version of ONNX Runtime."""
    library.OrtGetApiBase.restype = ctypes.POINTER(_OrtApiBase)
    return {"version": library.OrtGetApiBase().contents.get_version().decode()}


def tensorrt(library: ctypes.CDLL) -> Facts:
    """Version of TensorRT, or of TensorRT for RTX."""
    parts = (getattr(library, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch", "Build"))
    return {"version": ".".join(map(str, parts))}


def cuda(library: ctypes.CDLL) -> Facts:
    """The newest CUDA that the driver supports, and its GPUs. Raises: OSError with the number of CUDA's error."""
    value, size = ctypes.c_int(), ctypes.c_size_t()
    _check("start", library.cuInit(0))
    _check("tell its version", library.cuDriverGetVersion(ctypes.byref(value)))
    version = value.value
    _check("count GPUs", library.cuDeviceGetCount(ctypes.byref(value)))
    gpus = []
    for device in range(value.value):
        name = ctypes.create_string_buffer(256)
        _check("name a GPU", library.cuDeviceGetName(name, len(name), device))
        _check("tell the memory of a GPU", library.cuDeviceTotalMem_v2(ctypes.byref(size), device))
        capability = []
        for attribute in (_MAJOR, _MINOR):
            _check("describe a GPU", library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
            capability.append(str(value.value))
        gpus.append(
            {"name": name.value.decode(), "compute_capability": ".".join(capability), "memory_bytes": size.value}
        )
    return {"version": f"{version // 1000}.{version % 1000 // 10}", "gpus": gpus}


def torch() -> Facts:
    """Version of PyTorch, and whether it finds a GPU."""
    import torch

    return {"version": torch.__version__, "path": torch.__file__, "has_gpu": torch.cuda.is_available()}


def native() -> Facts:
    """The C++ runtime inside this package."""
    from sala_export.installation import VERSION
    from sala_export.runtime import _native

    return {"version": VERSION, "path": _native.__file__}


def operators() -> Facts:
    """Our operators on the CPU, and the instructions that they use here. Raises: OSError if they are not installed."""
    from sala_export.errors import BuildError
    from sala_export.installation import VERSION, onnxruntime_operators

    try:
        path = str(onnxruntime_operators())
    except BuildError as error:
        raise OSError(str(error)) from error
    library = ctypes.CDLL(path)
    library.sala_ort_simd_level.restype = ctypes.c_char_p
    return {"version": VERSION, "path": path, "simd_level": library.sala_ort_simd_level().decode()}


_LIBRARIES: Mapping[str, Callable[[ctypes.CDLL], Facts]] = {
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
    "cuda": cuda,
}
_MODULES: Mapping[str, Callable[[], Facts]] = {"torch": torch, "native": native, "operators": operators}


def _check(what: str, code: int) -> None:
    if code:
        raise OSError(f"the NVIDIA driver cannot {what}: error {code} of CUDA")


def _loaded(candidates: list[str]) -> tuple[ctypes.CDLL, str]:
    """The first library that can be loaded, and its path. Raises: OSError telling why none can."""
    reasons = []
    for candidate in candidates:
        try:
            library = ctypes.CDLL(candidate)
        except OSError as error:
            reasons.append(str(error))
            continue
        maps = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
        name = Path(candidate).name
        paths = [fields[5] for fields in maps if len(fields) == 6 and Path(fields[5]).name.startswith(name)]
        return library, (paths or [candidate])[0]
    raise OSError("; ".join(reasons))


def main(kind: str, *candidates: str) -> None:
    """Print the facts about a library, or the problem with it."""
    try:
        if kind in _MODULES:
            facts = _MODULES[kind]()
        else:
            library, path = _loaded(list(candidates))
            facts = {"path": path, **_LIBRARIES[kind](library)}
    except (OSError, ImportError, AttributeError) as error:
        facts = {"problem": str(error)}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
