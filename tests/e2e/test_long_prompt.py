"""The whole way to the CPU runtime on a long prompt: exported graph, operators and session against the torch model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle

import sala_export

STEPS = 70
TOLERANCE = 1e-3
"""Absolute, on logits of standard deviation 3."""


@pytest.mark.parametrize(
    ("cuts", "chunk_tokens"),
    [
        # Five times `dense_len`. The session cuts the last chunk once more, and others in the default size.
        ((0, 1, 777, 1650, 1651, 2600), 880),
        pytest.param((0, 1, 777, 4871, 4872, 9000), None, marks=pytest.mark.release),
    ],
    ids=str,
)
def test_uneven_chunks_and_decode_give_the_logits_of_torch(cuts: tuple[int, ...], chunk_tokens: int | None) -> None:
    prompt_tokens = cuts[-1]
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 512, prompt_tokens + STEPS))
    model = sala_export.SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)
    caches = model.new_caches(1, len(ids))
    session = sala_export.load(tiny_cpu_bundle()).session(max_context=len(ids), chunk_tokens=chunk_tokens)

    for start, end in itertools.pairwise(cuts):
        logits = session.prefill(ids[start:end].numpy(), context_length=prompt_tokens)
    past, context, last = torch.tensor([[0], [prompt_tokens], [prompt_tokens - 1]], dtype=torch.int32)
    rope = model.rope(past, prompt_tokens)
    expected, caches = model.step(ids[None, :prompt_tokens], past, context, rope, last, caches)
    assert np.abs(logits - expected[0].numpy()).max() <= TOLERANCE

    for position in range(prompt_tokens, len(ids)):
        token = ids[position : position + 1]
        past = torch.tensor([position], dtype=torch.int32)
        expected, caches = model.step(token[None], past, past + 1, model.rope(past, 1), past * 0, caches)
        assert np.abs(session.prefill(token.numpy()) - expected[0].numpy()).max() <= TOLERANCE
