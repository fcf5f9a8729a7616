"""Runs an exported graph with ONNX's own reference evaluator, our operators supplied by their torch references.

Everything between the operators is then computed by code that is not ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from sala_export.checkpoint.config import SalaConfig
from sala_export.model.rope import inv_freq_tensor, rope_cos_sin
from sala_export.model.signature import Signature, cache_sizes
from sala_export.onnx.step_graph import PLUGIN_ATTRIBUTES
from sala_export.ops.infllmv2_attention.torch_op import infllmv2_attention_
from sala_export.ops.lightning_attention.torch_op import lightning_attention


def as_torch(array: np.ndarray) -> torch.Tensor:
    """A copy, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same numbers, bfloat16 included."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _attributes(run: OpRun, overridden: dict[str, object]) -> dict[str, object]:
    names = [a.name for a in run.onnx_node.attribute if a.name not in PLUGIN_ATTRIBUTES]
    return {name: overridden.get(name) or getattr(run, name) for name in names}


class LightningAttention(OpRun):
    op_domain = "sala"

    def _run(self, *inputs, **attributes):
        values = [as_torch(x) for x in inputs]
        return tuple(as_numpy(t) for t in lightning_attention(*values, **_attributes(self, attributes)))


class InfLLMv2Attention(OpRun):
    op_domain = "sala"

    def _run(self, *inputs, **attributes):
        values = [as_torch(x) for x in inputs]
        y = infllmv2_attention_(*values, **_attributes(self, attributes))
        return tuple(as_numpy(t) for t in (y, *values[3:]))


class GraphRunner:
    """One sequence fed through a graph, chunk by chunk."""

    def __init__(self, graph: Path, config: SalaConfig, step: Signature, capacity: int) -> None:
        self.evaluator = ReferenceEvaluator(onnx.load(graph), new_ops=[LightningAttention, InfLLMv2Attention])
        self.start(config, step, capacity)

    def start(self, config: SalaConfig, step: Signature, capacity: int) -> None:
        """Begin a sequence of up to `capacity` tokens."""
        self.inv_freq = inv_freq_tensor(config.rope_theta, config.head_dim)
        self.step = step
        sizes = cache_sizes(config, capacity)
        self.empty = {
            entry.past.name: as_numpy(
                torch.zeros(entry.past.bound(sizes), dtype=getattr(torch, entry.past.dtype.value))
            )
            for entry in step.caches
        }
        self.caches = dict(self.empty)
        self.past = 0

    def feed(self, ids: torch.Tensor, context_length: int | None = None) -> torch.Tensor:
        """Logits [V] of the last of `ids` [T]."""
        return self.feed_rows(ids, [len(ids) - 1], context_length)[0]

    def feed_rows(self, ids: torch.Tensor, rows: Sequence[int], context_length: int | None = None) -> torch.Tensor:
        """Logits [R, V] of `rows`, indices into `ids` [T]."""
        inputs = self._inputs(ids, self.past, context_length, rows)
        logits, *present = self.evaluator.run(None, {**inputs, **self.caches})
        for entry, value in zip(self.step.caches, present, strict=True):
            assert value.shape == self.caches[entry.past.name].shape
            assert value.dtype == self.caches[entry.past.name].dtype
            self.caches[entry.past.name] = value
        self.past += len(ids)
        return torch.from_numpy(logits)

    def first_feeds(self, ids: torch.Tensor) -> dict[str, np.ndarray]:
        """Every input of a step that feeds `ids` [T] as a whole context."""
        return {**self._inputs(ids, 0, None, [len(ids) - 1]), **self.empty}

    def _inputs(
        self, ids: torch.Tensor, past: int, context_length: int | None, rows: Sequence[int]
    ) -> dict[str, np.ndarray]:
        end = past + len(ids)
        return {
            "input_ids": ids[None].numpy(),
            "past_length": np.array([past], np.int32),
            "context_length": np.array([context_length or end], np.int32),
            "rope_cos_sin": rope_cos_sin(torch.arange(past, end)[None], self.inv_freq).numpy(),
            "logit_rows": np.array(rows, np.int32),
        }
