"""Quantised bundles on the CPU compute what their engines are meant to: quantised weights, inputs rounded likewise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.quantized_checkpoints import write_quantized_checkpoint
from support.quantized_reference import quantized_model
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.specs import QUANTIZED_PRECISIONS, Precision

PROMPTS = 9
TOKENS = 7


def errors(source: Path, bundle: Path) -> tuple[torch.Tensor, float]:
    """Errors of logits by prompt, and what rounding the inputs changes, both relative to the largest logit."""
    write_cpu_bundle(source, bundle)
    llm = sala_export.load(bundle)
    ids = torch.randint(0, 512, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(3))
    rows = [torch.from_numpy(llm.session(max_context=64).prefill(prompt.tolist())) for prompt in ids]
    computed = torch.stack(rows)
    with quantized_model(source) as model:
        expected = model(ids)[:, -1]
    with quantized_model(source, round_inputs=False) as model:
        unrounded = model(ids)[:, -1]
    largest = expected.abs().amax()
    return (computed - expected).abs().amax(-1) / largest, ((unrounded - expected).abs().amax() / largest).item()


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_cpu_computes_the_quantised_model(precision: Precision, tmp_path: Path) -> None:
    found, effect = errors(tiny_checkpoint(2, precision), tmp_path / "bundle.sala")
    # Where a sum in another order crosses the border between two codes, all that follows differs; most prompts have
    # none such, and then nothing but fp32 rounding is left.
    assert found.median() < 1e-5
    assert effect > 1e-2 if precision is not Precision.INT4 else effect == 0


def test_cpu_takes_scales_per_channel_and_a_quantised_gate(tmp_path: Path) -> None:
    source = write_quantized_checkpoint(
        tmp_path / "source", Precision.INT8, per_channel=True, shared_scales=False, ignore=("lm_head",)
    )
    found, effect = errors(source, tmp_path / "bundle.sala")
    assert found.median() < 1e-5
    assert effect > 1e-2
