"""The GPU that a benchmark of kernels runs on, its rates, and the versions of what runs."""

from __future__ import annotations

from pathlib import Path

import torch
import triton

from sala_export.benchmark.machine import as_json, describe_machine
from sala_export.engine.recipe import Recipe, load_recipe, read_recipe, recipe_paths
from sala_export.errors import RequestError


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


def known_gpus() -> tuple[str, ...]:
    """Names of all recipes with rates, sorted."""
    return tuple(sorted(_known_recipes()))


def _known_recipes() -> dict[str, Path]:
    return recipe_paths() | {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def describe_gpu(device: torch.device) -> dict[str, object]:
    """Everything that a time depends on beside the code, as plain JSON values."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        **as_json(describe_machine()),
    }
