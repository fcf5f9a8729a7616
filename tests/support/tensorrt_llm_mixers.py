"""Both mixers on pages and states as TensorRT-LLM has them, without its classes, in batches of random numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sala_export.checkpoint.config import Mixer
from sala_export.checkpoint.keymap import MIXER_MODULES, mixer_shapes
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.rope import inv_freq_tensor, rope_cos_sin
from sala_export.tensorrt_llm.mixer_steps import MixerSteps, run_in_place, run_kernels_in_place
from sala_export.tensorrt_llm.page_layout import PageLayout, SparsePool
from sala_export.tensorrt_llm.step_groups import RequestStep, step_groups

PAGE_TOKENS = 16
PAGES = 6
"""Pages of a request."""
STEPS = (((33, 0), (33, 0)), ((8, 33), (8, 33), (9, 0)), ((5, 41), (1, 41), (1, 9)))
"""New and cached tokens of the requests in each step."""
PROMPTS = (200, 41, 9)
"""Tokens of their prompts. The first is longer than its pages, the second comes in two chunks."""


def mixer_results(checkpoint: Path, *, kernels: bool, device: str = "cpu") -> list[Tensor]:
    """Rows of both mixers in every step in fp32 on the CPU, from caches that were full of NaN."""
    config = Checkpoint.open(checkpoint).config
    run = run_kernels_in_place if kernels else run_in_place
    generator = torch.Generator().manual_seed(0)
    layout = PageLayout.of(config.sparse_config, PAGE_TOKENS)
    heads, dim = config.num_key_value_heads, config.head_dim
    slots = torch.randperm(len(PROMPTS) * PAGES, generator=generator).view(len(PROMPTS), PAGES).tolist()
    nan = float("nan")
    pool = SparsePool(
        keys_values=torch.full((2 * len(PROMPTS) * PAGES, 2, heads, PAGE_TOKENS, dim), nan, device=device),
        compressed=torch.full((len(PROMPTS) * PAGES, layout.rows, heads, dim), nan, device=device),
        page_scale=2,
    )
    states = torch.full((5, config.num_attention_heads, dim, dim), nan, device=device)
    state_slots = torch.tensor([4, 1, 3], dtype=torch.int32, device=device)
    shapes = {mixer: mixer_shapes(config, mixer) for mixer in Mixer}
    norms = {
        norm: torch.randn(shapes[Mixer.LIGHTNING][norm], generator=generator).to(device)
        for norm in MIXER_MODULES[Mixer.LIGHTNING].norms
    }
    lightning, sparse = (MixerSteps(config, mixer, run) for mixer in (Mixer.LIGHTNING, Mixer.SPARSE))
    found = []
    for step in STEPS:
        requests = [
            RequestStep(tokens=new, cached_tokens=cached, prompt_tokens=prompt, slots=own)
            for (new, cached), prompt, own in zip(step, PROMPTS, slots, strict=False)
        ]
        contexts = sum(cached + new <= prompt for (new, cached), prompt in zip(step, PROMPTS, strict=False))
        groups = step_groups(requests, contexts, state_slots[: len(step)], layout)
        positions = torch.cat([torch.arange(cached, cached + new) for new, cached in step]).to(device)
        rope = rope_cos_sin(positions, inv_freq_tensor(config.rope_theta, dim).to(device))
        width = config.num_attention_heads * dim
        rows = [
            torch.randn(len(positions), n, generator=generator).to(device)
            for n in (4 * width, 2 * (width + heads * dim))
        ]
        found.append(lightning.lightning(rows[0], groups, norms, rope, states))
        found.append(sparse.sparse(rows[1], groups, pool, layout))
    return [rows.cpu() for rows in found]
