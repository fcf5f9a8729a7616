"""Scripts with which TensorRT's own tools build and time the engine of a bundle.

TensorRT comes with `trtexec`, TensorRT for RTX with `tensorrt_rtx`, which takes the same options but for those below.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from ..bundle.manifest import Manifest
from ..errors import UnsupportedError
from ..model.signature import INPUT_IDS, LOGIT_ROWS
from ..model.token_inputs import token_inputs
from ..specs import FlavourName
from .profiles import Profile, ProfileName, stated_profiles

BUILD_SCRIPT = "build.sh"
_TOOLS = {FlavourName.TENSORRT: "trtexec", FlavourName.RTX: "tensorrt_rtx"}
_PLAN = "engine.plan"


def require_whole_graph(manifest: Manifest, directory: Path) -> None:
    """Raises: UnsupportedError if constants of the engine are in its plan alone, not in `engine.onnx`."""
    if any(tensor.fixed for tensor in manifest.weights.tensors.values()):
        raise UnsupportedError(
            f"{directory} is {manifest.precision}, whose engine has constants that {manifest.engine.graph} leaves out: "
            "other tools can build engines of bf16, fp16, fp8 and int8"
        )


def write_tool_scripts(manifest: Manifest, directory: Path, plugin_library: Path, folder: Path) -> tuple[Path, ...]:
    """Write scripts into `folder`, which is there: one builds the engine, one for each profile times it.

    Each profile gets the inputs of a step besides its caches, in files: random token ids at the sizes that TensorRT
    tunes for, after a context that fills the rest of the caches. With numbers of its own a tool would read beyond them.

    The plan is one without plugins, unlike the bundle's own: these tools refuse native code in a plan. So they load
    the library before they build or run it.

    Args: `directory` of the bundle, absolute.
    Returns: the scripts, the one that builds first.
    Raises: UnsupportedError as `require_whole_graph`.
    """
    require_whole_graph(manifest, directory)
    profiles = stated_profiles(manifest)
    scripts = [_write(folder / BUILD_SCRIPT, _build_options(manifest, directory, plugin_library, profiles))]
    flavour = FlavourName(manifest.engine.tensorrt_flavour)
    for index, profile in enumerate(profiles):
        sizes = {shape.name: shape.opt for shape in profile.inputs}
        files = _write_inputs(manifest, profile, folder / profile.name)
        options = [
            _TOOLS[flavour],
            f"--loadEngine={_PLAN}",
            f"--dynamicPlugins={plugin_library}",
            f"--useProfile={index}",
            f"--shapes={_shapes(sizes)}",
            f"--loadInputs={','.join(f'{name}:{file}' for name, file in files.items())}",
        ]
        scripts.append(_write(folder / f"{profile.name}.sh", options))
    return tuple(scripts)


def _build_options(
    manifest: Manifest, directory: Path, plugin_library: Path, profiles: tuple[Profile, ...]
) -> list[str]:
    flavour = FlavourName(manifest.engine.tensorrt_flavour)
    capabilities = ",".join(text.replace(".", "") for text in manifest.engine.compute_capabilities)
    # Networks of TensorRT for RTX are always strongly typed, and it builds for GPUs that are not here.
    own = ["--stronglyTyped"] if flavour is FlavourName.TENSORRT else [f"--computeCapabilities={capabilities}"]
    return [
        _TOOLS[flavour],
        f"--onnx={directory / manifest.engine.graph}",
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


def _write_inputs(manifest: Manifest, profile: Profile, folder: Path) -> dict[str, str]:
    """Write the inputs of a step besides its caches, raw and little endian: name -> file beside the scripts."""
    folder.mkdir()
    sizes = {shape.name: shape.opt for shape in profile.inputs}
    batch, tokens = sizes[INPUT_IDS]
    capacity = manifest.engine.profiles[profile.name]["capacity"].opt
    past = capacity - tokens if profile.name is ProfileName.DECODE else 0
    ids = np.random.default_rng(0).integers(0, manifest.model.config.vocab_size, (batch, tokens), np.int64)
    files = {}
    for name, array in token_inputs(ids, past, sizes[LOGIT_ROWS][0] // batch, manifest.model.inv_freq).items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())
        files[name] = f"{folder.name}/{name}.bin"
    return files
