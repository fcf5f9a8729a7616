"""Everything that `sala-export doctor` tells, as plain JSON values and as text."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bundle.reader import Bundle
from ..engine.host import total_host_bytes
from ..errors import BuildError
from ..installation import plugin_library
from ..kernel_report.shipped import shipped_architectures
from ..machine import describe_machine
from ..ops.common.targets import AOT_ARCHITECTURES
from ..specs import format_bytes
from .libraries import find_libraries
from .verdicts import chosen, judge

_PACKAGES = (
    *("click", "huggingface_hub", "jinja2", "numpy", "onnx", "onnx-ir", "onnxruntime", "pydantic", "rich"),
    *("safetensors", "tensorrt", "tensorrt-rtx-cu13", "tokenizers", "torch", "triton"),
)


def diagnose(bundle: Bundle | None = None, needs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Look at this machine, and judge which runtimes would run a bundle, or those that this release builds.

    Nothing of a model is loaded. Paths in the home directory begin with `~`.
    Args: `needs` says what 9B needs of the memory on the CPU: for each `precision` its `needed_bytes`, and whether it
        `fits`.
    """
    libraries = find_libraries()
    verdicts = judge(libraries, None if bundle is None else bundle.manifest, _architectures())
    machine = asdict(describe_machine())
    machine |= {"libc": " ".join(platform.libc_ver()), "memory_bytes": total_host_bytes(), "executable": sys.executable}
    found = {
        "machine": machine,
        "packages": {name: _version(name) for name in _PACKAGES},
        "libraries": [asdict(library) for library in libraries.all()],
        "cpu": {"simd_level": libraries.operators.simd_level, "needs_of_9b": [dict(need) for need in needs]},
        "bundle": None if bundle is None else _of_bundle(bundle),
        "runtimes": [asdict(verdict) for verdict in verdicts],
        "auto": chosen(verdicts),
    }
    told: dict[str, Any] = _without_home(found)
    return told


def as_text(found: dict[str, Any]) -> str:
    """What `diagnose` found, for people, in lines that fit a bug report."""
    machine = found["machine"]
    packages = [f"{name} {version}" for name, version in found["packages"].items() if version]
    missing = [name for name, version in found["packages"].items() if not version]
    lines = [
        f"sala-export {machine['sala_export']}{_in_brackets(machine['commit'])}",
        f"system        {machine['system']}, {machine['libc']}",
        f"Python        {machine['python']}, {machine['executable']}",
        f"processor     {machine['processor']}, {machine['cores']} cores, {format_bytes(machine['memory_bytes'])}"
        + (f", instructions {found['cpu']['simd_level']}" if found["cpu"]["simd_level"] else ""),
        *_needs(found["cpu"]["needs_of_9b"]),
        *(f"GPU           {_gpu(gpu)}" for library in found["libraries"] for gpu in library["gpus"]),
        *(f"driver        {gpu['driver']}" for gpu in machine["gpus"][:1]),
        f"packages      {', '.join(packages)}",
        f"not installed {', '.join(missing) or 'nothing that is looked for'}",
        *([] if found["bundle"] is None else [f"bundle        {_bundle(found['bundle'])}"]),
        "",
        "Libraries:",
        *(f"  {library['title']:<20}  {_library(library)}" for library in found["libraries"]),
        "",
        "Runtimes:",
        *(
            f"  {each['runtime']:<11}  {'yes, ' if each['runs'] else 'no: '}{each['detail']}"
            for each in found["runtimes"]
        ),
        f"  {'auto':<11}  {'takes ' + found['auto'] if found['auto'] else 'finds no runtime'}",
    ]
    return "\n".join(lines)


def _architectures() -> Collection[int]:
    """Those whose kernels a bundle that is built here has, or would have if what builds were installed and whole."""
    try:
        return shipped_architectures(plugin_library())
    except (BuildError, OSError):
        return AOT_ARCHITECTURES


def _needs(needs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What 9B needs without a GPU, with a warning where this machine lacks it."""

    def listed(fits: bool) -> str:
        return ", ".join(
            f"{need['precision']} ({format_bytes(need['needed_bytes'])})" for need in needs if need["fits"] is fits
        )

    fitting, lacking = listed(True), listed(False)
    lines = [f"9B, no GPU    fits in {fitting}"] if fitting else []
    return lines + ([f"warning       9B does not fit this memory in {lacking}"] if lacking else [])


def _of_bundle(bundle: Bundle) -> dict[str, Any]:
    manifest, engine = bundle.manifest, bundle.manifest.engine
    return {
        "path": str(bundle.directory),
        "model": manifest.model.source,
        "created_by": manifest.created_by,
        "precision": manifest.precision.value,
        "compute_capabilities": list(engine.compute_capabilities) if engine else [],
        "tensorrt": {"flavour": engine.tensorrt_flavour, "version": engine.tensorrt_version} if engine else None,
        "weights_included": manifest.weights.included,
    }


def _bundle(bundle: dict[str, Any]) -> str:
    capabilities, tensorrt = ", ".join(bundle["compute_capabilities"]), bundle["tensorrt"]
    engine = (
        f"compute capability {capabilities}, TensorRT {tensorrt['version']} ({tensorrt['flavour']})"
        if tensorrt
        else "CPUs, without an engine"
    )
    return f"{bundle['path']}: {bundle['model']}, {bundle['precision']}, for {engine}, by {bundle['created_by']}"


def _gpu(gpu: dict[str, Any]) -> str:
    return f"{gpu['name']}, compute capability {gpu['compute_capability']}, {format_bytes(gpu['memory_bytes'])}"


def _library(library: dict[str, Any]) -> str:
    return library["problem"] or f"{library['version']}{_in_brackets(library['path'])}"


def _in_brackets(text: str | None) -> str:
    return f" ({text})" if text else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_home(value: Any) -> Any:
    """The same values with `~` for the home directory, so that a report tells no user's name."""
    home = str(Path.home()).rstrip("/")
    if isinstance(value, dict):
        return {name: _without_home(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_home(each) for each in value]
    return value.replace(f"{home}/", "~/") if home and isinstance(value, str) else value
