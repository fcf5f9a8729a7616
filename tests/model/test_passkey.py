"""The constructed checkpoint through the torch model: it retrieves, and stops where selection is broken."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.passkey import (
    DEPTHS,
    UNKNOWN,
    Passkey,
    in_pieces,
    key_copy_channel,
    needle_positions,
    passkey_config,
    passkey_prompt,
    write_passkey_checkpoint,
    write_passkey_samples,
)
from torch import Tensor

from sala_export import SalaForCausalLM
from sala_export.calibration.layer import QuantizationRecipe
from sala_export.calibration.quantize import quantize_checkpoint
from sala_export.calibration.samples import SampleRequest
from sala_export.checkpoint.quantization import SCHEMES
from sala_export.checkpoint.reader import Checkpoint
from sala_export.model.layers import StepInputs
from sala_export.ops.infllmv2_attention import reference
from sala_export.specs import Precision

LENGTH = 3072
"""48 blocks, of which a query takes 12; the last five are its window."""
_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-passkeys-")


def passkey_model(dtype: torch.dtype = torch.float32, topk: int = 8) -> SalaForCausalLM:
    return _passkey_model(dtype, topk)


@functools.cache
def _passkey_model(dtype: torch.dtype, topk: int) -> SalaForCausalLM:
    path = Path(_FOLDER.name) / f"{dtype}-{topk}"
    config = passkey_config(num_attention_heads=4, topk=topk)
    return SalaForCausalLM.from_pretrained(write_passkey_checkpoint(path, config, dtype))


def answers(model: SalaForCausalLM, length: int, positions: list[int]) -> tuple[list[Passkey], list[int]]:
    """The needles of a prompt in uneven chunks, and the most likely token after the question for each."""
    tokens, needles = passkey_prompt(length, positions)
    context = length + 2 * len(needles)
    caches = model.new_caches(1, context)
    past = 0
    given = []
    pieces = [*in_pieces(tokens, (1000, 777, 1)), *(needle.question() for needle in needles)]
    for piece in pieces:
        before = torch.tensor([past], dtype=torch.int32)
        ids = torch.from_numpy(piece)[None].to(torch.int64)
        rope = model.rope(before, len(piece))
        lengths, last = torch.tensor([[context], [len(piece) - 1]], dtype=torch.int32)
        logits, caches = model.step(ids, before, lengths, rope, last, caches)
        past += len(piece)
        given.append(int(logits.argmax()))
    return needles, given[-len(needles) :]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_needles_at_all_depths_are_found(dtype: torch.dtype) -> None:
    needles, given = answers(passkey_model(dtype), LENGTH, needle_positions(LENGTH))
    assert given == [needle.value for needle in needles]


def test_needles_across_edges_of_blocks_windows_and_chunks_are_found() -> None:
    # Key and value in two blocks, in two k1 windows of one block, in two chunks; all far behind the window.
    positions = [64 * 10 - 1, 1000 - 1, 64 * 20 + 15, 64 * 25 + 31, 1777 - 1, 64 * 30 + 47, 64 * 35]
    needles, given = answers(passkey_model(), LENGTH, positions)
    assert given == [needle.value for needle in needles]


def forced_blocks_only(monkeypatch: pytest.MonkeyPatch) -> SalaForCausalLM:
    return passkey_model(topk=2)


def change_block_scores(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> SalaForCausalLM:
    pool = torch.nn.functional.max_pool1d
    monkeypatch.setattr(torch.nn.functional, "max_pool1d", lambda *inputs, stride: change(pool(*inputs, stride=stride)))
    return passkey_model()


def lowest_scores_first(monkeypatch: pytest.MonkeyPatch) -> SalaForCausalLM:
    return change_block_scores(monkeypatch, torch.neg)


def scores_of_other_blocks(monkeypatch: pytest.MonkeyPatch) -> SalaForCausalLM:
    return change_block_scores(monkeypatch, lambda score: score.roll(2, dims=-1))


def keys_of_the_other_group(monkeypatch: pytest.MonkeyPatch) -> SalaForCausalLM:
    def swapped(q: Tensor, k1: Tensor, k2: Tensor, *others: object) -> Tensor:
        return probabilities(q, k1.flip(0), k2.flip(0), *others)

    probabilities = reference._group_probabilities
    monkeypatch.setattr(reference, "_group_probabilities", swapped)
    return passkey_model()


@pytest.mark.parametrize(
    "broken", [forced_blocks_only, lowest_scores_first, scores_of_other_blocks, keys_of_the_other_group]
)
def test_broken_selection_finds_only_what_is_always_seen(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], SalaForCausalLM]
) -> None:
    # Blocks of equal score are taken from the front, so needles are further behind than that.
    needles, given = answers(broken(monkeypatch), LENGTH, needle_positions(LENGTH, (0.0, 0.3, 0.5, 0.7, 1.0)))
    assert given == [needles[0].value, UNKNOWN, UNKNOWN, UNKNOWN, needles[4].value]


@functools.cache
def quantized_passkey_model(precision: Precision) -> SalaForCausalLM:
    folder = Path(_FOLDER.name)
    source = write_passkey_checkpoint(folder / f"for-{precision}", passkey_config(num_attention_heads=4))
    samples = SampleRequest(file=write_passkey_samples(folder / f"{precision}.jsonl"))
    output = folder / f"quantized-{precision}"
    quantize_checkpoint(Checkpoint.open(source), QuantizationRecipe.from_options(precision), samples, output)
    return SalaForCausalLM.from_pretrained(output, dtype=torch.float32)


@pytest.mark.parametrize("precision", SCHEMES)
def test_quantised_model_finds_needles(precision: Precision) -> None:
    length = 1600
    # A key that begins the prompt sees nothing but itself, so layer 0 marks it like the token after it. Their scores
    # are a few per cent apart, which is what a step of MXFP8 may take from one of them.
    depths = (0.01, *DEPTHS[1:]) if precision is Precision.MXFP8 else DEPTHS
    needles, given = answers(quantized_passkey_model(precision), length, needle_positions(length, depths))
    assert given == [needle.value for needle in needles]


def test_key_that_was_never_mentioned_is_unknown() -> None:
    model = passkey_model()
    tokens, needles = passkey_prompt(1500, [100, 700])
    tokens[100:102] = tokens[0]
    logits = model(torch.cat((torch.from_numpy(tokens), torch.from_numpy(needles[0].question())))[None].to(torch.int64))
    assert int(logits[0, -1].argmax()) == UNKNOWN


def test_token_before_is_found_a_million_tokens_in() -> None:
    # RoPE angles are as coarse as 1/16 there.
    model = passkey_model()
    tokens, (needle,) = passkey_prompt(64, [40])
    past = torch.tensor([2**20], dtype=torch.int32)
    step = StepInputs(past_length=past, context_length=past + 64, rope_cos_sin=model.rope(past, 64))
    rows = model.model.embed_tokens(torch.from_numpy(tokens)[None].to(torch.int64)) * model.config.scale_emb
    rows, _ = model.model.layers[0](rows, model.new_caches(1, 64)[0], step)
    copied = rows[0, :, key_copy_channel(needle)].abs()
    assert copied[41] > 0.9
    # Half of it would still be e^32 times less attention.
    assert copied[torch.arange(64) != 41].max() < 0.5
