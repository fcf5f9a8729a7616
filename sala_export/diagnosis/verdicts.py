"""Says which runtimes would run on this machine, and why the others would not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..bundle.manifest import EngineEntry, Manifest
from ..engine.tensorrt_rtx import SERVED
from ..ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES, installation_advice, serving_architecture
from ..specs import ComputeCapability
from .libraries import Gpu, Libraries, Library

_LEAST_CUDA = (13, 0)
"""What driver 580 supports, the oldest that TensorRT for RTX 1.7 takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An answer to the question whether a runtime would run, and why."""

    runtime: str
    runs: bool
    detail: str
    """On what it would run, or why it would not and what to do."""


def judge(
    libraries: Libraries, manifest: Manifest | None = None, architectures: Collection[int] = AOT_ARCHITECTURES
) -> tuple[Verdict, ...]:
    """Judge every runtime, for a bundle of this manifest, or for those that are built with kernels of `architectures`.

    Args: `architectures` are written as 10 * major + minor.
    """
    runtimes = {
        "tensorrt": _tensorrt(libraries, manifest, architectures),
        "onnxruntime": _onnxruntime(libraries, manifest),
        "torch": _torch(libraries, manifest),
    }
    return tuple(Verdict(runtime=name, runs=runs, detail=detail) for name, (runs, detail) in runtimes.items())


def chosen(verdicts: tuple[Verdict, ...]) -> str | None:
    """The runtime that `auto` takes. None if it finds none; `auto` never takes torch."""
    return next((each.runtime for each in verdicts if each.runs and each.runtime != "torch"), None)


def _tensorrt(libraries: Libraries, manifest: Manifest | None, architectures: Collection[int]) -> tuple[bool, str]:
    driver, engine = libraries.driver, manifest.engine if manifest else None
    if manifest is not None and engine is None:
        return False, "the bundle was built for CPUs and has no engine: build one with --gpu"
    if not libraries.native.works:
        return _broken(libraries.native, "install sala-export again")
    if not driver.works:
        return _broken(driver, "install driver 580 or later if this machine has an NVIDIA GPU")
    if not driver.gpus:
        return False, "the NVIDIA driver finds no GPU: check nvidia-smi"
    gpu = next((gpu for gpu in driver.gpus if _serves(gpu, engine, architectures)), None)
    if gpu is None:
        there = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in driver.gpus)
        wanted = engine.compute_capabilities if engine else [f"SM{sm}" for sm in sorted(architectures)]
        who = "the bundle's engine is" if engine else "the kernels are"
        advice = "build for it with --gpu" if engine else _kernel_advice(driver.gpus, architectures)
        return False, f"{who} for {', '.join(wanted)}, this machine has {there}: {advice}"
    is_rtx = engine.tensorrt_flavour == "rtx" if engine else _capability(gpu).sm in SERVED
    if is_rtx and _numbers(driver.version) < _LEAST_CUDA:
        return False, f"the NVIDIA driver supports CUDA {driver.version}: install driver 580 or later"
    library = libraries.tensorrt_rtx if is_rtx else libraries.tensorrt
    package = "tensorrt-rtx-cu13" if is_rtx else "tensorrt"
    if not library.works:
        return _broken(library, f"pip install {package}")
    if engine is not None and library.version != engine.tensorrt_version:
        needed = engine.tensorrt_version
        return (
            False,
            f"{library.title} is {library.version}, the bundle needs {needed}: pip install {package}=={needed}",
        )
    return _with_weights(manifest, f"on {gpu.name}")


def _onnxruntime(libraries: Libraries, manifest: Manifest | None) -> tuple[bool, str]:
    for library, advice in (
        (libraries.native, "install sala-export again"),
        (libraries.onnxruntime, "pip install onnxruntime"),
        (libraries.operators, "install sala-export again"),
    ):
        if not library.works:
            return _broken(library, advice)
    return _with_weights(manifest, "on the CPU")


def _torch(libraries: Libraries, manifest: Manifest | None) -> tuple[bool, str]:
    if not libraries.torch.works:
        return _broken(libraries.torch, "pip install 'sala-export[torch]'")
    served = [gpu for gpu in libraries.driver.gpus if _serves(gpu, None, ARCHITECTURES)]
    on_gpu = libraries.torch.has_gpu and served
    return _with_weights(manifest, f"on {served[0].name}" if on_gpu else "on the CPU, which is for verification")


def _broken(library: Library, advice: str) -> tuple[bool, str]:
    return False, f"{library.title}: {library.problem}; {advice}"


def _with_weights(manifest: Manifest | None, where: str) -> tuple[bool, str]:
    if manifest is not None and not manifest.weights.included:
        return True, f"{where}, with --weights DIR: the bundle was built with --no-weights"
    return True, where


def _serves(gpu: Gpu, engine: EngineEntry | None, architectures: Collection[int]) -> bool:
    if engine is not None:
        return gpu.compute_capability in engine.compute_capabilities
    return serving_architecture(_capability(gpu), architectures) is not None


def _kernel_advice(gpus: Collection[Gpu], architectures: Collection[int]) -> str:
    """What to do where no GPU runs the kernels that are installed."""
    wanted = next((sm for gpu in gpus if (sm := serving_architecture(_capability(gpu))) is not None), None)
    return "there are none for it" if wanted is None else installation_advice(wanted, architectures)


def _capability(gpu: Gpu) -> ComputeCapability:
    return ComputeCapability(*_numbers(gpu.compute_capability))


def _numbers(version: str | None) -> tuple[int, int]:
    major, _, minor = (version or "0.0").partition(".")
    return int(major), int(minor)
