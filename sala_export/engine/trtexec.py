"""Scripts with which TensorRT's own tools build and time the engine of a bundle.

TensorRT comes with `trtexec`, TensorRT for RTX with `tensorrt_rtx`, which takes the same options but for those below.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from ..bundle.manifest import Manifest
from ..errors import RequestError, UnsupportedError
from ..model.signature import BATCH, CAPACITY, ROWS, TOKENS, cache_sizes
from ..model.token_inputs import token_inputs
from ..specs import FlavourName
from .profiles import Profile, ProfileName, stated_profiles

BUILD_SCRIPT = "build.sh"
_TOOLS = {FlavourName.TENSORRT: "trtexec", FlavourName.RTX: "tensorrt_rtx"}
_PLAN = "engine.plan"
_CONTEXT = 64 << 10
"""Tokens of a timed step, unless somebody says."""


def require_whole_graph(manifest: Manifest, directory: Path) -> None:
    """Raises: UnsupportedError if constants of the engine are in its plan alone, not in `engine.onnx`. RequestError if
    the bundle has no engine."""
    graph = manifest.require_engine().graph
    if any(tensor.fixed for tensor in manifest.weights.tensors.values()):
        raise UnsupportedError(
            f"{directory} is {manifest.precision}, whose engine has constants that {graph} leaves out: "
            "other tools can build engines of bf16, fp16, fp8, mxfp8 and int8"
        )


def write_tool_scripts(
    manifest: Manifest, directory: Path, plugin_library: Path, folder: Path, *, context: int | None = None
) -> tuple[Path, ...]:
    """Write scripts into `folder`, which is there: one builds the engine, one for each profile times it.

    Each profile gets the inputs of a step besides its caches, in files. With its own numbers a tool would read beyond
    them. Prefill reads a chunk of random token ids into empty caches, decode one token for each sequence at the end of
    full ones. The tools copy inputs and outputs once, not in each step.

    The plan is one without plugins, unlike the bundle's own: these tools refuse native code in a plan. So they load
    the library before they build or run it.

    Args: `directory` of the bundle, absolute; `context`, the tokens that the caches of a timed step have room for.
    If it is None, that is 64K, or what the engine takes if that is less.
    Returns: the scripts, the one that builds first.
    Raises: as `require_whole_graph`; RequestError for a context that the engine does not take.
    """
    require_whole_graph(manifest, directory)
    context = _context(manifest, context)
    profiles = stated_profiles(manifest)
    scripts = [_write(folder / BUILD_SCRIPT, _build_options(manifest, directory, plugin_library, profiles))]
    flavour = FlavourName(manifest.require_engine().tensorrt_flavour)
    for index, profile in enumerate(profiles):
        sizes = _step_sizes(manifest, profile.name, context)
        shapes = {spec.name: spec.bound(sizes) for spec in manifest.graph.inputs}
        files = _write_inputs(manifest, profile.name, sizes, folder / profile.name)
        options = [
            _TOOLS[flavour],
            f"--loadEngine={_PLAN}",
            f"--dynamicPlugins={plugin_library}",
            f"--useProfile={index}",
            f"--shapes={_shapes(shapes)}",
            f"--loadInputs={','.join(f'{name}:{file}' for name, file in files.items())}",
            "--noDataTransfers",
        ]
        scripts.append(_write(folder / f"{profile.name}.sh", options))
    return tuple(scripts)


def _context(manifest: Manifest, asked: int | None) -> int:
    limits = [sizes[CAPACITY] for sizes in manifest.require_engine().profiles.values()]
    least, most = max(each.min for each in limits), min(each.max for each in limits)
    context = min(_CONTEXT, most) if asked is None else asked
    if not least <= context <= most:
        raise RequestError(f"--context {context}: this engine takes {least} to {most} tokens")
    return context


def _step_sizes(manifest: Manifest, profile: str, context: int) -> dict[str, int]:
    """Values of the symbolic dimensions: those that TensorRT tunes for, with caches for `context` tokens."""
    sizes = {symbol: extents.opt for symbol, extents in manifest.require_engine().profiles[profile].items()}
    tokens = min(sizes[TOKENS], context)
    return {**sizes, **cache_sizes(manifest.model.config, context, sizes[BATCH]), TOKENS: tokens}


def _build_options(
    manifest: Manifest, directory: Path, plugin_library: Path, profiles: tuple[Profile, ...]
) -> list[str]:
    flavour = FlavourName(manifest.require_engine().tensorrt_flavour)
    capabilities = ",".join(text.replace(".", "") for text in manifest.require_engine().compute_capabilities)
    # Networks of TensorRT for RTX are always strongly typed, and it builds for GPUs that are not here.
    own = ["--stronglyTyped"] if flavour is FlavourName.TENSORRT else [f"--computeCapabilities={capabilities}"]
    return [
        _TOOLS[flavour],
        f"--onnx={directory / manifest.require_engine().graph}",
        f"--dynamicPlugins={plugin_library}",
        "--maxAuxStreams=0",
        "--profilingVerbosity=detailed",
        *own,
        *(option for index, profile in enumerate(profiles) for option in _profile_options(index, profile)),
        "--skipInference",
        f"--saveEngine={_PLAN}",
    ]


def _profile_options(index: int, profile: Profile) -> list[str]:
    bounds = {
        "min": {shape.name: shape.min for shape in profile.inputs},
        "opt": {shape.name: shape.opt for shape in profile.inputs},
        "max": {shape.name: shape.max for shape in profile.inputs},
    }
    return [f"--profile={index}", *(f"--{bound}Shapes={_shapes(sizes)}" for bound, sizes in bounds.items())]


def _shapes(sizes: dict[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes.items())


def _write(path: Path, command: list[str]) -> Path:
    lines = " \\\n  ".join(map(shlex.quote, command))
    path.write_text(f'#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\nexec {lines} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def _write_inputs(manifest: Manifest, profile: str, sizes: dict[str, int], folder: Path) -> dict[str, str]:
    """Write the inputs of a step besides its caches, raw and little endian: name -> file beside the scripts."""
    folder.mkdir()
    batch, tokens = sizes[BATCH], sizes[TOKENS]
    past = sizes[CAPACITY] - tokens if profile == ProfileName.DECODE else 0
    ids = np.random.default_rng(0).integers(0, manifest.model.config.vocab_size, (batch, tokens), np.int64)
    files = {}
    for name, array in token_inputs(ids, past, sizes[ROWS] // batch, manifest.model.inv_freq).items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())
        files[name] = f"{folder.name}/{name}.bin"
    return files
