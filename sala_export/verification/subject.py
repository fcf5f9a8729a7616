"""The models that `verify` compares. Each gives its hidden rows layer by layer, and logits of the last ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import EMBEDDING, FINAL_NORM, LM_HEAD
from ..checkpoint.reader import Checkpoint
from ..model.emulation import EmulatedLinear
from ..model.layer_run import LayerRun, embed, load_layer, logits
from ..model.layers import Linear
from ..specs import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRows:
    """The rows of one layer, with the magnitudes in it."""

    rows: Tensor
    """The residual stream after the layer, fp32 [T, H]."""
    largest_activation: float | None = None
    """Largest magnitude of the stream and of all inputs and outputs of projections. None if not seen."""
    input_range: float | None = None
    """Largest magnitude of an input over the static range that it is quantised to. Above 1 it saturates. None if no
    input is quantised, or it was not seen."""
    saturated: float | None = None
    """Share of input elements that saturate."""


LayerFunction = Callable[[Tensor], LayerRows]
"""Runs one layer on the rows fp32 [T, H] that enter it."""


class Subject(Protocol):
    """A model under test, or the original, which runs layer by layer."""

    config: SalaConfig
    description: str
    """Text for people that says which model computes, and how."""
    computes_in: Precision
    """Precision whose limits hold for a model that is not quantised."""

    def layer(self, layer: int, input_ids: Tensor) -> LayerFunction:
        """Load one layer, to run it on the rows of one context, int64 [T]. Those into layer 0 are the embedding's."""

    def logits(self, rows: Tensor) -> Tensor:
        """Compute logits fp32 [T, V] of rows [T, H] of the last layer."""


def run_layers(subject: Subject, embedded: Tensor, input_ids: Tensor) -> Iterator[LayerRows]:
    """Yield the rows after each layer of one context, with one layer in memory at a time.

    Args: `embedded`: rows fp32 [T, H] that enter layer 0.
    """
    rows = embedded
    for layer in range(subject.config.num_hidden_layers):
        found = subject.layer(layer, input_ids)(rows)
        yield found
        rows = found.rows


class CheckpointSubject:
    """A checkpoint in torch, in fp32. Quantised products are emulated."""

    computes_in = Precision.FP32

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        precision = checkpoint.precision
        self.description = "torch in fp32" if precision is None else f"torch in fp32, {precision} emulated"
        self._run = LayerRun(self.config)
        self._head: Tensor | None = None

    def embed(self, input_ids: Tensor) -> Tensor:
        """Compute the rows fp32 [T, H] that enter layer 0, of tokens int64 [T]."""
        return embed(self.config, self.checkpoint.tensor(EMBEDDING), input_ids)

    def layer(self, layer: int, input_ids: Tensor) -> LayerFunction:
        module = load_layer(self.checkpoint, layer)

        def run(rows: Tensor) -> LayerRows:
            with _watch(module) as seen:
                after = self._run.run(layer, module, rows)
            return LayerRows(
                rows=after,
                largest_activation=max(seen.largest, float(after.abs().max())),
                input_range=seen.input_range,
                saturated=seen.saturated / seen.elements if seen.elements else None,
            )

        return run

    def logits(self, rows: Tensor) -> Tensor:
        if self._head is None:
            name = EMBEDDING if self.config.tie_word_embeddings else LM_HEAD
            self._head = self.checkpoint.tensor(name).to(torch.float32)
            self.checkpoint.require_unchanged()
        return logits(self.config, self.checkpoint.tensor(FINAL_NORM), self._head, rows)


@dataclass(slots=True)
class _Seen:
    largest: float = 0.0
    input_range: float | None = None
    saturated: int = 0
    elements: int = 0

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        magnitude = arguments[0].abs()
        largest = float(magnitude.max())
        self.largest = max(self.largest, largest, float(output.abs().max()))
        limit = module.input_limit if isinstance(module, EmulatedLinear) else None
        if limit is not None:
            self.input_range = max(self.input_range or 0.0, largest / limit)
            self.saturated += int((magnitude > limit).sum())
            self.elements += magnitude.numel()


@contextmanager
def _watch(layer: nn.Module) -> Iterator[_Seen]:
    """Look at what goes in and out of the projections of a layer."""
    seen = _Seen()
    watched = [module for module in layer.modules() if isinstance(module, Linear | EmulatedLinear)]
    handles = [module.register_forward_hook(seen) for module in watched]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
