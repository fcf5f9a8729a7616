"""The model through TensorRT-LLM's interfaces: golden vectors, in chunks, in mixed batches, in caches used before."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from support.closeness import assert_close
from support.golden import GOLDEN_CHECKPOINT, golden
from support.tensorrt_llm_batches import Request, Server, load_model
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.tensorrt_llm import step_groups


@pytest.fixture(scope="module")
def model(shell: ModuleType) -> Any:
    return load_model(GOLDEN_CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> SalaForCausalLM:
    return SalaForCausalLM.from_pretrained(GOLDEN_CHECKPOINT, dtype=torch.float32)


def prefill(server: Server, request: Request, chunks: Sequence[int]) -> Tensor:
    """Feed a prompt in chunks of these sizes and then the rest."""
    for count in (*chunks, request.prompt_len):
        if request.tokens < request.prompt_len:
            logits = server.step([(request, count)])
    return logits[0]


@pytest.mark.parametrize(
    ("case", "page_tokens", "chunks"),
    [
        ("golden", 32, ()),
        ("golden", 64, (1, 30, 1, 96, 127, 500)),
        ("golden_cross", 16, (1, 900, 98)),
        ("golden_cross", 128, ()),
    ],
    ids=["whole", "uneven chunks", "uneven chunks, small pages", "whole, large pages"],
)
def test_prefill_and_decode_give_golden_logits(
    shell: ModuleType, model: Any, case: str, page_tokens: int, chunks: tuple[int, ...]
) -> None:
    vectors = golden(case)
    server = Server(shell, model, page_tokens=page_tokens)
    request = Request(1, vectors["input_ids"])
    assert_close(prefill(server, request, chunks), vectors["prefill_logits"][-1])
    for token, expected in zip(vectors["decode_ids"].tolist(), vectors["decode_logits"], strict=True):
        assert_close(server.step(tokens=[(request, token)])[0], expected)


def test_requests_share_batches_and_caches_are_used_again(
    shell: ModuleType, model: Any, reference: SalaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt in chunks beside two that generate. One ends, and a new one gets what it had."""
    ids = golden("golden")["input_ids"]
    # Two that generate share a call while both are short, and then no longer.
    monkeypatch.setattr(step_groups, "MAX_GATHERED_TOKENS", 2 * 300)
    server = Server(shell, model, page_tokens=32)
    prompts = {1: ids[:1501], 2: ids[100:390], 3: ids[700:757], 4: ids[400:1450]}
    requests = {each: Request(each, prompt) for each, prompt in prompts.items()}
    first, second, third, fourth = requests.values()
    fed = {each: prompt.tolist() for each, prompt in prompts.items()}
    rows: list[tuple[int, int, Tensor]] = []
    """Request, tokens it had been fed, logits after them."""

    def step(chunks: Sequence[tuple[Request, int]], generating: Sequence[Request]) -> None:
        tokens = [(request, (request.tokens * 7 + request.py_request_id) % 256) for request in generating]
        for request, token in tokens:
            fed[request.py_request_id].append(token)
        logits = server.step(chunks, tokens)
        who = [request for request, _ in (*chunks, *tokens)]
        rows.extend((r.py_request_id, r.tokens, row) for r, row in zip(who, logits, strict=True))

    step([(second, 290), (third, 50)], [])
    step([(first, 333), (third, 7)], [second])
    for count in (1, 500, 31, 600):
        step([(first, count)], [second, third])
    server.free(second)
    step([(fourth, 700), (first, 36)], [third])
    assert first.tokens == 1501
    step([(fourth, 350)], [first, third])
    for _ in range(6):
        step([], [fourth, first, third])

    for each, tokens in fed.items():
        expected = reference(torch.tensor(tokens)[None])[0]
        # A prompt decides by its own length whether it is sparse, and its answer from where it reaches that length.
        own = {count: row for request, count, row in rows if request == each}
        prompt = len(prompts[each])
        whole = reference(torch.tensor(tokens[:prompt])[None])[0]
        for count, row in own.items():
            assert_close(row, (whole if count <= prompt else expected)[count - 1])
    assert len(server.manager.free_slots) + sum(map(len, server.manager.slots.values())) == 150
