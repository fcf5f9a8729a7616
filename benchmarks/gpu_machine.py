"""The GPU that a benchmark runs on: its rates, and what may go wrong on it."""

from __future__ import annotations

from pathlib import Path

import torch
from triton.errors import TritonError

from sala_export.engine.recipe import GpuRecipe, load_recipe, read_recipe, recipe_paths
from sala_export.errors import RequestError, SalaError, UnsupportedError

NO_GPU = "no CUDA device here: this can only be measured on an NVIDIA GPU"
CaseFailure = (SalaError, RuntimeError, TritonError, AssertionError)
"""What ends one case and not the run: a refusal, an error of CUDA, a kernel that does not compile, a failed check."""


def require_gpu_or_name(device: str | None) -> None:
    """Refuse to measure a CPU that nobody asked for. Raises: UnsupportedError."""
    if device is None and not torch.cuda.is_available():
        raise UnsupportedError(f"{NO_GPU}, or ask for --device cpu")


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def find_rates(gpu: str | None, device_name: str) -> GpuRecipe:
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


def rates_of(name: str) -> GpuRecipe:
    """The recipe `engines/NAME.toml`, or that of a GPU which is only measured, beside this file."""
    return read_recipe(_known_recipes()[name])


def known_gpus() -> tuple[str, ...]:
    """Names of all recipes with rates, sorted."""
    return tuple(sorted(_known_recipes()))


def _known_recipes() -> dict[str, Path]:
    return recipe_paths() | {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
