"""The model against the golden vectors of the published one, and against itself in every chunking."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.closeness import assert_close
from support.golden import CASES, GOLDEN_CHECKPOINT, golden
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.checkpoint.config import Mixer, SalaConfig
from sala_export.errors import ShapeError
from sala_export.model.layers import Cache
from sala_export.ops.infllmv2_attention.reference import select_blocks


@pytest.fixture(scope="module")
def model() -> SalaForCausalLM:
    return SalaForCausalLM.from_pretrained(GOLDEN_CHECKPOINT, dtype=torch.float32)


class Sequence:
    """One sequence fed chunk by chunk, with what each call of the golden case records."""

    def __init__(self, model: SalaForCausalLM, capacity: int) -> None:
        self.model = model
        self.caches = model.new_caches(1, capacity)
        self.past = 0
        self.hidden: list[Tensor] = []
        """[T, H] after the embedding, after every layer, after the final norm; of the last call."""

    def feed(self, ids: Tensor, context_length: int | None = None) -> Tensor:
        past = torch.tensor([self.past], dtype=torch.int32)
        self.past += len(ids)
        context = torch.tensor([context_length or self.past], dtype=torch.int32)
        self.hidden = []
        hooks = [self.model.model.layers[0].register_forward_pre_hook(lambda _, args: self.hidden.append(args[0][0]))]
        hooks += [
            layer.register_forward_hook(lambda _, args, out: self.hidden.append(out[0][0]))
            for layer in self.model.model.layers
        ]
        rope, last = self.model.rope(past, len(ids)), torch.tensor([len(ids) - 1], dtype=torch.int32)
        logits, self.caches = self.model.step(ids[None], past, context, rope, last, self.caches)
        for hook in hooks:
            hook.remove()
        self.hidden.append(self.model.model.norm(self.hidden[-1]))
        return logits[0]


def state_tensors(config: SalaConfig, caches: list[Cache], tokens: int) -> dict[str, Tensor]:
    """Valid rows of all caches by the golden vectors' names."""
    found = {}
    for layer, (mixer, cache) in enumerate(zip(config.mixer_types, caches, strict=True)):
        if mixer is Mixer.LIGHTNING:
            found[f"state.layer{layer}"] = cache[0][0]
        else:
            sparse = config.sparse_config
            found[f"k1.layer{layer}"] = cache[2][0, :, : sparse.k1_count(tokens)].transpose(0, 1)
            found[f"k2.layer{layer}"] = cache[3][0, :, : sparse.k2_count(tokens)].transpose(0, 1)
    return found


@pytest.mark.parametrize("case", CASES)
def test_whole_context_gives_golden_logits(model: SalaForCausalLM, case: str) -> None:
    vectors = golden(case)
    logits = model(vectors["input_ids"][None])
    assert logits.dtype == torch.float32
    assert_close(logits[0, vectors["prefill_logits_pos"]], vectors["prefill_logits"])


@pytest.mark.parametrize("rows", [[4], [9, 4], [0, 7, 7, 3, 9, 9], list(range(9, -1, -1))], ids=len)
def test_step_gives_the_rows_that_are_asked_for(model: SalaForCausalLM, rows: list[int]) -> None:
    ids = golden("golden")["input_ids"][:10].reshape(2, 5)
    past = torch.zeros(2, dtype=torch.int32)
    wanted = torch.tensor(rows, dtype=torch.int32)
    logits, _ = model.step(ids, past, past + 5, model.rope(past, 5), wanted, model.new_caches(2, 5))
    assert_close(logits, model(ids).flatten(0, 1)[rows])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [10_000, 333])
def test_prefill_and_decode_give_golden_rows_states_and_logits(model: SalaForCausalLM, case: str, chunk: int) -> None:
    vectors = golden(case)
    prompt, steps = vectors["input_ids"], vectors["decode_ids"]
    sequence = Sequence(model, len(prompt) + len(steps))
    for start in range(0, len(prompt), chunk):
        logits = sequence.feed(prompt[start : start + chunk], len(prompt))
    assert_close(logits, vectors["prefill_logits"][-1])
    last = min(16, len(sequence.hidden[0]))
    for row, expected in zip(sequence.hidden, vectors["prefill_hidden_last16"], strict=True):
        assert_close(row[-last:], expected[-last:])
    for name, value in state_tensors(model.config, sequence.caches, len(prompt)).items():
        if case == "golden" or name.startswith("state"):  # golden_cross has no compressed keys of its dense prompt
            assert_close(value, vectors[name.replace(".", "_prefill.")])

    for index, token in enumerate(steps):
        assert_close(sequence.feed(token[None]), vectors["decode_logits"][index])
        for row, expected in zip(sequence.hidden, vectors["decode_hidden"][:, index], strict=True):
            assert_close(row[0], expected)
    for name, value in state_tensors(model.config, sequence.caches, len(prompt) + len(steps)).items():
        assert_close(value, vectors[name.replace(".", "_final.")])


def queries(model: SalaForCausalLM, layer: int, rows: Tensor) -> Tensor:
    """Query heads [G, R, T, D] of a sparse layer for residual rows [T, H]."""
    config = model.config
    block = model.model.layers[layer]
    q = block.self_attn.q_proj(block.input_layernorm(rows))
    return q.view(len(rows), config.num_key_value_heads, -1, config.head_dim).permute(1, 2, 0, 3)


def sparse_sizes(config: SalaConfig) -> dict[str, int]:
    sizes = dataclasses.asdict(config.sparse_config)
    del sizes["dense_len"]
    return sizes


@pytest.mark.parametrize("layer", [0, 2])
def test_every_prompt_row_selects_the_golden_blocks(model: SalaForCausalLM, layer: int) -> None:
    vectors = golden("golden")
    prompt = vectors["input_ids"]
    sequence = Sequence(model, len(prompt))
    sequence.feed(prompt)
    _, _, k1, k2 = sequence.caches[layer]
    selection = select_blocks(
        queries(model, layer, sequence.hidden[layer]),
        k1[0],
        k2[0],
        torch.arange(len(prompt)),
        scale=model.config.attention_scale,
        **sparse_sizes(model.config),
    )
    bits = vectors[f"selection_bits.layer{layer}"]  # bit b % 8 of byte b // 8
    block = torch.arange(selection.taken.shape[-1])
    expected = (bits[..., block // 8] >> (block % 8)) & 1
    assert torch.equal(selection.taken, expected.bool())

    score = vectors[f"block_score_last16.layer{layer}"]
    actual = selection.score[:, -16:]
    visible = torch.isfinite(score) & torch.isfinite(actual)
    assert visible.any()
    assert_close(actual[visible], score[visible])
    assert torch.equal(actual[score.isposinf()].isposinf(), torch.ones_like(actual[score.isposinf()]).bool())


@pytest.mark.parametrize("case", CASES)
def test_every_decode_step_selects_the_golden_blocks(model: SalaForCausalLM, case: str) -> None:
    vectors = golden(case)
    prompt, steps = vectors["input_ids"], vectors["decode_ids"]
    sequence = Sequence(model, len(prompt) + len(steps))
    sequence.feed(prompt)
    sparse_layers = [layer for layer, mixer in enumerate(model.config.mixer_types) if mixer is Mixer.SPARSE]
    checked = 0
    for index, token in enumerate(steps):
        sequence.feed(token[None])
        for layer in sparse_layers:
            expected = vectors[f"topk_idx_decode.layer{layer}"][index]
            dense = sequence.past < model.config.sparse_config.dense_len
            assert torch.equal(expected == -2, torch.full_like(expected, dense, dtype=torch.bool))
            if dense:
                continue
            _, _, k1, k2 = sequence.caches[layer]
            taken = select_blocks(
                queries(model, layer, sequence.hidden[layer]),
                k1[0],
                k2[0],
                torch.tensor([sequence.past - 1]),
                scale=model.config.attention_scale,
                **sparse_sizes(model.config),
            ).taken
            for head in range(len(taken)):
                assert taken[head, 0].nonzero().flatten().tolist() == [b for b in expected[head].tolist() if b >= 0]
            checked += 1
    assert checked >= len(steps) // 2


def test_batch_rows_with_different_pasts_do_not_mix(model: SalaForCausalLM) -> None:
    ids = golden("golden")["input_ids"]
    first, second = Sequence(model, 400), Sequence(model, 400)
    first.feed(ids[:300])
    second.feed(ids[500:577])
    expected = torch.stack([first.feed(ids[300:310]), second.feed(ids[577:587])])

    before_first, before_second = Sequence(model, 400), Sequence(model, 400)
    before_first.feed(ids[:300])
    before_second.feed(ids[500:577])
    caches = [
        tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
        for a, b in zip(before_first.caches, before_second.caches, strict=True)
    ]
    past = torch.tensor([300, 77], dtype=torch.int32)
    both = torch.stack([ids[300:310], ids[577:587]])
    last = torch.tensor([9, 19], dtype=torch.int32)
    logits, _ = model.step(both, past, past + 10, model.rope(past, 10), last, caches)
    assert_close(logits, expected)


def test_truncated_model_keeps_the_residual_scale_of_the_whole(model: SalaForCausalLM) -> None:
    assert model.config.truncated(1).residual_scale == model.config.residual_scale
    assert model.config.truncated(1).mixer_types == model.config.mixer_types[:1]


def test_chunk_that_leaves_the_cache_is_refused_and_leaves_it_untouched(model: SalaForCausalLM) -> None:
    sequence = Sequence(model, 64)
    sequence.feed(golden("golden")["input_ids"][:60])
    before = [tensor.clone() for tensor in sequence.caches[0]]
    with pytest.raises(ShapeError, match=r"InfLLMv2Attention: past_length \[60\] plus 5 tokens leaves the cache"):
        sequence.feed(golden("golden")["input_ids"][60:65])
    for tensor, kept in zip(sequence.caches[0], before, strict=True):
        assert torch.equal(tensor, kept)
