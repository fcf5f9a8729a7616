"""The GPU that a benchmark runs on: its name, driver, clocks and rates, and the versions of what runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from sala_export.engine.recipe import Recipe, load_recipe, read_recipe, recipe_paths
from sala_export.errors import RequestError

_QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def find_rates(gpu: str | None, device_name: str) -> Recipe:
    """The recipe with the rates of a GPU: `--gpu` if given, else the one whose `gpu` is the device's name.

    Raises: RequestError if none is.
    """
    if gpu is not None:
        return load_recipe(gpu)
    known = _known_recipes()
    for path in known.values():
        recipe = read_recipe(path)
        if recipe.gpu == device_name:
            return recipe
    raise RequestError(
        f"no rates of {device_name} among {', '.join(known)}: give those of your GPU with --gpu FILE.toml"
    )


def rates_of(name: str) -> Recipe:
    """The recipe `engines/NAME.toml`, or that of a GPU which is only measured, beside this file."""
    return read_recipe(_known_recipes()[name])


def _known_recipes() -> dict[str, Path]:
    return recipe_paths() | {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def describe_machine(device: torch.device) -> dict[str, object]:
    """Everything that a time depends on beside the code, as plain JSON values."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "nvidia_smi": clocks(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "commit": commit(),
    }


def clocks(device: torch.device) -> dict[str, str]:
    """Driver, clocks (MHz), power limit (W) and temperature now, as `nvidia-smi` tells them."""
    if shutil.which("nvidia-smi") is None:
        return {"missing": "no nvidia-smi on this machine, so driver and clocks are unknown"}
    uuid = torch.cuda.get_device_properties(device).uuid
    return read_clocks(
        _output("nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits")
    )


def read_clocks(line: str) -> dict[str, str]:
    """One line of `nvidia-smi`, by field."""
    return dict(zip(_QUERY, (value.strip() for value in line.split(",")), strict=True))


def commit() -> str:
    """The commit of this checkout, with `+` if files differ from it."""
    git: Sequence[str] = ("git", "-C", str(Path(__file__).parent))
    if shutil.which("git") is None or not (Path(__file__).parents[1] / ".git").exists():
        return "unknown: no git checkout"
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return _output(*git, "rev-parse", "HEAD").strip() + ("+" if changed.strip() else "")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
