"""`benchmarks/block_overlap.py` on a small model, where Triton interprets, with what its kernels chose."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import block_overlap
from benchmarks.block_overlap import LayerCounts, Overlap
from sala_export.model_source import ModelSource
from sala_export.specs import Precision

Step = tuple[int, list[list[list[int]]]]
"""Past length and chosen blocks [G][T][S] of one sparse operator."""


def measure_small(checkpoint: Path, length: int, chunk_tokens: int) -> tuple[list[Overlap], list[Step]]:
    """Overlaps over random tokens, and the steps that were counted, in order."""
    steps: list[Step] = []
    add = LayerCounts.add

    def remember(self: LayerCounts, chosen: Tensor, past_length: Tensor) -> None:
        steps.append((int(past_length[0]), chosen[0].tolist()))
        add(self, chosen, past_length)

    prompt = np.random.default_rng(0).integers(0, 97, length, dtype=np.int32)
    with mock.patch.object(LayerCounts, "add", remember):
        source = ModelSource.open(checkpoint)
        found = block_overlap.measure(source, prompt, Precision.FP32, torch.device("cpu"), chunk_tokens)
    return found, steps
