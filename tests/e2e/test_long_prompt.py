"""The whole way to the CPU runtime on a long prompt: exported graph, operators and session against the torch model."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from support.checkpoints import tiny_checkpoint
from support.runtime_bundles import tiny_cpu_bundle

import sala_export

PROMPT_TOKENS = 9000
STEPS = 100
TOLERANCE = 1e-3
"""Absolute, on logits of standard deviation 3."""


def test_uneven_chunks_and_decode_give_the_logits_of_torch() -> None:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 512, PROMPT_TOKENS + STEPS))
    model = sala_export.SalaForCausalLM.from_pretrained(tiny_checkpoint(), dtype=torch.float32)
    caches = model.new_caches(1, len(ids))
    session = sala_export.load(tiny_cpu_bundle()).session(max_context=len(ids))

    chunks = itertools.pairwise([0, 1, 777, 4871, 4872, PROMPT_TOKENS])
    for start, end in chunks:
        logits = session.prefill(ids[start:end].numpy(), context_length=PROMPT_TOKENS)
    past, context, last = torch.tensor([[0], [PROMPT_TOKENS], [PROMPT_TOKENS - 1]], dtype=torch.int32)
    rope = model.rope(past, PROMPT_TOKENS)
    expected, caches = model.step(ids[None, :PROMPT_TOKENS], past, context, rope, last, caches)
    assert np.abs(logits - expected[0].numpy()).max() <= TOLERANCE

    for position in range(PROMPT_TOKENS, len(ids)):
        token = ids[position : position + 1]
        past = torch.tensor([position], dtype=torch.int32)
        expected, caches = model.step(token[None], past, past + 1, model.rope(past, 1), past * 0, caches)
        assert np.abs(session.prefill(token.numpy()) - expected[0].numpy()).max() <= TOLERANCE
