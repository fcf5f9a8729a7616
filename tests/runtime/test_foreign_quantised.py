"""Bundles of other tools' quantised checkpoints compute what a float copy does, inputs rounded alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.closeness import assert_most_rows_close
from support.foreign_checkpoints import Written, awq, gptq, modelopt_fp8, modelopt_nvfp4
from support.quantized_reference import emulated_model, stored_tensors
from support.runtime_bundles import write_cpu_bundle

import sala_export
from sala_export.checkpoint.folder import CheckpointFolder
from sala_export.checkpoint.keymap import weights
from sala_export.model.sala import SalaForCausalLM

PROMPTS = 16
# With seven tokens, a sum near the middle between two codes of fp8 changes every second row.
TOKENS = 3


@pytest.mark.parametrize("writer", [modelopt_fp8, partial(modelopt_fp8, by_channel=True), modelopt_nvfp4, gptq, awq])
def test_logits_are_those_of_a_float_copy(tmp_path: Path, writer: Callable[..., Written]) -> None:
    path, quantized, roundings = writer(tmp_path / "foreign")
    stored, config = stored_tensors(path), CheckpointFolder.open(path).config
    values = {weight.name: stored[weight.name].float() for weight in weights(config) if weight.name not in quantized}
    ids = torch.randint(0, 512, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(5))
    with emulated_model(config, values | quantized, roundings) as model:
        expected = model(ids)[:, -1]
    llm = sala_export.load(write_cpu_bundle(path, tmp_path / "bundle.sala"))
    found = torch.stack([torch.from_numpy(llm.session(max_context=64).prefill(each.tolist())) for each in ids])
    emulated = SalaForCausalLM.from_pretrained(path, dtype=torch.float32)(ids)[:, -1]
    for computed in (found, emulated):
        assert_most_rows_close(computed, expected)
