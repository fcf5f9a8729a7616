"""Tensors that a model has no place for: refused where they change answers, named where they are parts beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.calibration import quantized_tiny
from support.checkpoints import copy_checkpoint, edit_json
from support.golden import GOLDEN_CHECKPOINT

from sala_export.checkpoint.folder import INDEX_FILE, WEIGHTS_FILE
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError
from sala_export.specs import Precision

LAST = "model-00003-of-00003.safetensors"
ATTENTION = "model.layers.0.self_attn"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that may be spoilt."""
    return copy_checkpoint(GOLDEN_CHECKPOINT, tmp_path / "checkpoint")


def golden_tensors() -> Tensors:
    return {
        name: tensor for shard in GOLDEN_CHECKPOINT.glob("*.safetensors") for name, tensor in load_file(shard).items()
    }


def store(directory: Path, tensors: Mapping[str, torch.Tensor], **fields: object) -> Path:
    """Write a checkpoint as one file."""
    for file in (*directory.glob("*.safetensors"), directory / INDEX_FILE):
        file.unlink(missing_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / WEIGHTS_FILE)
    edit_json(directory / "config.json", lambda config: config.update(fields))
    return directory


def refusal(directory: Path, layers: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory, layers)
    text = str(caught.value)
    assert text.startswith(f"{directory}: ")
    assert "\n" not in text
    assert len(text) < 600
    return text


ones = torch.ones(4)

REFUSED: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "bias": (lambda t: t.update({f"{ATTENTION}.q_proj.bias": ones}), "q_proj.bias: this model has no biases"),
    "bias of the head": (lambda t: t.update({"lm_head.bias": ones}), "holds lm_head.bias: this model has no biases"),
    "bias of a norm": (lambda t: t.update({"model.norm.bias": ones}), "holds model.norm.bias: this model has no"),
    "adapter inside": (
        lambda t: t.update({f"{ATTENTION}.v_proj.lora_{side}.default.weight": ones for side in "AB"}),
        f"holds {ATTENTION}.v_proj.lora_A.default.weight, {ATTENTION}.v_proj.lora_B.default.weight: an adapter that is",
    ),
    "wrapped by an adapter": (
        lambda t: t.update({f"{ATTENTION}.q_proj.base_layer.weight": t.pop(f"{ATTENTION}.q_proj.weight")}),
        "q_proj.base_layer.weight: an adapter that is not merged; merge it",
    ),
    "saved with its wrapper": (
        lambda t: t.update({f"base_model.model.{name}": t.pop(name) for name in [*t]}),
        "base_model.model.lm_head.weight, base_model.model.model.embed_tokens.weight",
    ),
    "factors without the model's name": (
        lambda t: t.update({"layers.0.self_attn.q_proj.lora_A.weight": ones}),
        "holds layers.0.self_attn.q_proj.lora_A.weight: an adapter that is not merged",
    ),
    "weight again, below a wrapper": (
        lambda t: t.update({f"module.{ATTENTION}.q_proj.weight": ones}),
        f"holds module.{ATTENTION}.q_proj.weight: the tensors of this model begin with model. or lm_head.; rename",
    ),
    "bias without the model's name": (
        lambda t: t.update({"layers.0.mlp.up_proj.bias": ones}),
        "holds layers.0.mlp.up_proj.bias: this model has no biases",
    ),
    "layers": (
        lambda t: t.update({"model.layers.3.mlp.up_proj.weight": ones, "model.layers.10.input_layernorm.weight": ones}),
        "holds model.layers.10.input_layernorm.weight, model.layers.3.mlp.up_proj.weight: config.json has 3 layers",
    ),
    "norm": (lambda t: t.update({"model.layers.0.pre_feedforward_layernorm.weight": ones}), "calls for no such tensor"),
    "mixer of the other kind": (lambda t: t.update({f"{ATTENTION}.z_proj.weight": ones}), "calls for no such tensor"),
    "weight normalisation": (lambda t: t.update({f"{ATTENTION}.q_proj.weight_g": ones}), "calls for no such tensor"),
    "unknown below the model": (lambda t: t.update({"model.embed_norm.weight": ones}), "calls for no such tensor"),
    "fp8 scales": (lambda t: t.update({f"{ATTENTION}.q_proj.weight_scale_inv": ones}), "a sign of quantised weights"),
    "scales of a cache": (lambda t: t.update({f"{ATTENTION}.k_proj.k_scale": ones}), "a sign of quantised weights"),
    "gptq": (
        lambda t: t.update({f"{ATTENTION}.q_proj.{part}": ones for part in ("qweight", "qzeros", "scales", "g_idx")}),
        "and 1 more: a sign of quantised weights, but quantization_config in config.json does not speak of it, or what",
    ),
    "bitsandbytes": (
        lambda t: t.update({f"{ATTENTION}.q_proj.weight.quant_state.bitsandbytes__nf4": ones}),
        "a sign of quantised weights",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_answers_is_refused(directory: Path, what: str) -> None:
    add, message = REFUSED[what]
    tensors = golden_tensors()
    add(tensors)
    text = refusal(store(directory, tensors))
    assert f"{WEIGHTS_FILE} holds " in text
    assert message in text


@pytest.mark.parametrize(
    "name",
    [
        f"{ATTENTION}.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.cos_cached",
        f"{ATTENTION}.masked_bias",
        "model.layers.1.self_attn.slopes",
        "model.position_ids",
        "model.rotary_emb.long_inv_freq",
        "model.rotary_emb.cos_sin_cache",
        "model.causal_mask",
        "model.slope_rates",
        f"{ATTENTION}.decay",
        f"{ATTENTION}.q_proj._extra_state",
    ],
)
def test_buffers_are_left_out_quietly(directory: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    opened = Checkpoint.open(store(directory, golden_tensors() | {name: ones}))
    assert name not in opened.tensors()
    assert caplog.messages == []


def test_bias_of_zeros_is_none(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{ATTENTION}.{role}.bias" for role in ("q_proj", "k_proj")]
    zeros, nearly = torch.zeros(1024), torch.zeros(1024)
    nearly[-1] = 1e-30
    Checkpoint.open(store(directory, golden_tensors() | dict.fromkeys(names, zeros)))
    assert caplog.messages == []
    text = refusal(store(directory, golden_tensors() | {names[0]: zeros, names[1]: nearly}))
    assert f"holds {names[1]}: this model has no biases" in text


def test_zero_points_of_zeros_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = copy_checkpoint(quantized_tiny(Precision.INT4), tmp_path / "checkpoint")
    zero_point = f"{ATTENTION}.q_proj.weight_zero_point"
    save_file({zero_point: torch.zeros(4)}, directory / "more.safetensors")
    edit_json(directory / INDEX_FILE, lambda index: index["weight_map"].update({zero_point: "more.safetensors"}))
    Checkpoint.open(directory)
    assert caplog.messages == []
    save_file({zero_point: ones}, directory / "more.safetensors")
    assert f"holds {zero_point}: a sign of quantised weights" in refusal(directory)


def test_weights_that_should_be_quantised_and_are_not_are_named(tmp_path: Path) -> None:
    directory = copy_checkpoint(quantized_tiny(Precision.INT4), tmp_path / "checkpoint")
    edit_json(directory / "config.json", lambda fields: fields["quantization_config"].update(ignore=[]))
    assert "are stored as they are; name them among what it leaves alone (ignore)" in refusal(directory)


def test_parts_beside_the_model_are_named_in_one_warning(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = ["v_head.weight", "model.visual.patch_embed.weight", "mtp.0.fc.weight", "model.mtp.fc.weight", "score.bias"]
    opened = Checkpoint.open(store(directory, golden_tensors() | dict.fromkeys(parts, ones)))
    assert opened.tensors().keys() == golden_tensors().keys()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{directory} holds what is no part of this model, which is left out: model.mtp.fc.weight, "
        "model.visual.patch_embed.weight, mtp.0.fc.weight and 2 more"
    )


def test_first_layers_alone_are_no_reason_to_refuse_the_others(directory: Path) -> None:
    assert Checkpoint.open(directory, layers=1).config.num_hidden_layers == 1
    assert "config.json has 3 layers" in refusal(
        store(directory, golden_tensors() | {"model.layers.3.input_layernorm.weight": ones}), layers=1
    )


def test_shards_without_weights_are_looked_at(directory: Path) -> None:
    extra = "model-00004-of-00003.safetensors"
    save_file({f"{ATTENTION}.o_proj.bias": ones}, directory / extra)
    Checkpoint.open(directory)  # neither the index nor a name says that the file belongs to the model
    edit_json(directory / INDEX_FILE, lambda index: index["weight_map"].update({f"{ATTENTION}.o_proj.bias": extra}))
    assert f"{extra} holds {ATTENTION}.o_proj.bias: this model has no biases" in refusal(directory)
    (directory / extra).unlink()
    assert f"{extra} holds {ATTENTION}.o_proj.bias: this model has no biases" in refusal(directory)


def test_tensor_that_the_index_does_not_list_is_looked_at(directory: Path) -> None:
    tensors = load_file(directory / LAST)
    save_file({**tensors, "model.norm.bias": ones}, directory / LAST)
    assert f"{LAST} holds model.norm.bias: this model has no biases" in refusal(directory)


def test_tied_embedding_with_an_equal_head_is_taken(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = golden_tensors()
    tensors[HEAD] = tensors[EMBEDDING]
    opened = Checkpoint.open(store(directory, tensors, tie_word_embeddings=True))
    assert opened.tensors().keys() == tensors.keys() - {HEAD}
    assert caplog.messages == []


@pytest.mark.parametrize("other", ["number", "type", "shape"])
def test_tied_embedding_with_another_head_is_refused(directory: Path, other: str) -> None:
    tensors = golden_tensors()
    head = tensors[EMBEDDING].clone()
    head[-1, -1] += 1
    tensors[HEAD] = {"number": head, "type": tensors[EMBEDDING].float(), "shape": tensors[EMBEDDING][1:]}[other]
    text = refusal(store(directory, tensors, tie_word_embeddings=True))
    assert f"config.json says tie_word_embeddings, but {WEIGHTS_FILE} holds a {HEAD} that is not {EMBEDDING}" in text


def test_model_without_a_head_is_told_of_tied_embeddings(directory: Path) -> None:
    tensors = golden_tensors()
    del tensors[HEAD]
    assert 'set "tie_word_embeddings": true in config.json' in refusal(store(directory, tensors))


def test_adapter_is_refused_where_it_is_given(tmp_path: Path, directory: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    for place in (adapter, directory):
        (place / "adapter_config.json").touch()
        with pytest.raises(CheckpointError, match=r"holds a PEFT adapter \(adapter_config.json\): merge it into its"):
            Checkpoint.open(place)
