"""The GPU that a benchmark of kernels runs on, its rates, and the versions of what runs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton
from triton.errors import TritonError

from benchmarks.figures import FigureWriter
from sala_export.benchmark.machine import as_json, describe_machine
from sala_export.engine.recipe import Recipe, load_recipe, read_recipe, recipe_paths
from sala_export.errors import RequestError, SalaError

NO_GPU = "no CUDA device here: this can only be measured on an NVIDIA GPU"
CaseFailure = (SalaError, RuntimeError, TritonError, AssertionError)
"""What ends one case and not the run: a refusal, an error of CUDA, a kernel that does not compile, a failed check."""
COMMIT_FILE = Path(__file__).parents[1] / "commit.txt"
"""Written by the pack of `scripts/gpu_pack.sh`, where sources travel without their history."""


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def start_figures(options: argparse.Namespace) -> FigureWriter:
    """The writer that `figures.add_figure_options` asks for; a new file begins with this machine."""
    writer = FigureWriter(options.figures, options.step)
    if options.figures is not None and not options.figures.is_file():
        write_header(writer)
    return writer


def write_header(writer: FigureWriter) -> None:
    """The `run` figure: machine, commit and time. Without a GPU it is a rehearsal, whose figures are no results."""
    on_gpu = torch.cuda.is_available()
    machine = describe_gpu(torch.device("cuda")) if on_gpu else as_json(describe_machine())
    packed = COMMIT_FILE.read_text(encoding="utf-8").strip() if COMMIT_FILE.is_file() else None
    writer.write(
        "run",
        machine=machine,
        commit=machine["commit"] or packed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        rehearsal=not on_gpu,
    )


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
