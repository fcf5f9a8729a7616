"""Options that several benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sala_export.errors import UnsupportedError


def add_figure_options(parser: argparse.ArgumentParser) -> None:
    """`--figures` and `--step`, for a `figures.FigureWriter`."""
    parser.add_argument("--figures", type=Path, help="append each figure to this file of JSON lines as it is measured")
    parser.add_argument("--step", default="", help="the letter of the step that measures, for --figures")


def require_gpu_or_name(device: str | None) -> None:
    """Refuse to measure a CPU that nobody asked for. Raises: UnsupportedError."""
    if device is None and not torch.cuda.is_available():
        raise UnsupportedError("no CUDA device here: a GPU is measured, unless you ask for --device cpu")
