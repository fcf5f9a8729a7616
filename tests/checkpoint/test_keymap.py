from __future__ import annotations

import json
from dataclasses import replace

from safetensors import safe_open
from support.golden import GOLDEN_CHECKPOINT

from sala_export.checkpoint.config import Mixer
from sala_export.checkpoint.folder import CheckpointFolder
from sala_export.checkpoint.keymap import LM_HEAD, layer_weights, weights
from sala_export.checkpoint.presets import PRESETS


def test_names_and_shapes_are_those_of_the_published_code() -> None:
    stored: dict[str, tuple[int, ...]] = {}
    for shard in GOLDEN_CHECKPOINT.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            stored |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    config = CheckpointFolder.open(GOLDEN_CHECKPOINT).config
    assert {weight.name: weight.shape for weight in weights(config)} == stored


def test_parameters_of_the_published_dimensions_add_up() -> None:
    assert sum(weight.elements for weight in weights(PRESETS["9b"].config)) == 9_477_203_968


def test_order_is_that_of_computation() -> None:
    index = json.loads((GOLDEN_CHECKPOINT / "model.safetensors.index.json").read_text(encoding="utf-8"))
    found = weights(CheckpointFolder.open(GOLDEN_CHECKPOINT).config)
    assert len(found) == len(index["weight_map"])
    assert [weight.layer for weight in found] == [None] + [0] * 10 + [1] * 13 + [2] * 10 + [None, None]
    assert [w.role for w in found[:2]] == ["embed_tokens", "input_layernorm"]
    assert [w.role for w in found[-3:]] == ["down_proj", "norm", "lm_head"]


def test_tied_embeddings_have_no_lm_head() -> None:
    untied = PRESETS["tiny"].config
    tied = weights(replace(untied, tie_word_embeddings=True))
    assert [w for w in weights(untied) if w.name != LM_HEAD] == list(tied)


def test_mixer_decides_the_weights_of_a_layer() -> None:
    config = replace(PRESETS["tiny"].config, mixer_types=(Mixer.LIGHTNING, Mixer.SPARSE))
    roles = [{w.role for w in layer_weights(config, layer)} for layer in (0, 1)]
    assert roles[0] - roles[1] == {"z_proj", "q_norm", "k_norm", "o_norm"}
    assert roles[1] - roles[0] == {"o_gate"}
