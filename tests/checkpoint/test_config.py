from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.golden import GOLDEN_CHECKPOINT

from sala_export.checkpoint.config import Mixer, SalaConfig, SparseConfig
from sala_export.checkpoint.folder import CheckpointFolder
from sala_export.errors import ConfigError, InputError, RequestError, UnsupportedError


@pytest.fixture
def fields() -> dict[str, Any]:
    """The config.json that the published code wrote for the golden checkpoint."""
    loaded: dict[str, Any] = json.loads((GOLDEN_CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    return loaded


def refusal(fields: dict[str, Any], **changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        SalaConfig.from_dict(fields | changes)
    assert "\n" not in str(caught.value)
    return caught.value


def test_published_fields_are_read() -> None:
    config = CheckpointFolder.open(GOLDEN_CHECKPOINT).config
    assert config.mixer_types == (Mixer.SPARSE, Mixer.LIGHTNING, Mixer.SPARSE)
    assert config.sparse_config == SparseConfig(topk=4, window_size=256, dense_len=1024)
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == ((2, 255), 1, 2)
    assert config.logit_divisor == 2.0
    assert math.isclose(config.residual_scale, 1.4 / math.sqrt(3))


def test_unknown_keys_and_the_spellings_of_transformers_5_are_accepted(fields: dict[str, Any]) -> None:
    expected = SalaConfig.from_dict(fields)
    del fields["rope_theta"], fields["rope_scaling"], fields["dtype"]
    modern = fields | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "torch_dtype": "bfloat16",
        "layer_types": ["new", "key"],
    }
    assert SalaConfig.from_dict(modern) == expected


def test_a_scalar_or_absent_eos_token_is_accepted(fields: dict[str, Any]) -> None:
    assert SalaConfig.from_dict(fields | {"eos_token_id": 2}).eos_token_id == (2,)
    assert SalaConfig.from_dict(fields | {"eos_token_id": None}).eos_token_id == ()


def test_rope_theta_comes_from_either_spelling(fields: dict[str, Any]) -> None:
    assert SalaConfig.from_dict(fields | {"rope_theta": 5e5}).rope_theta == 5e5
    del fields["rope_theta"]
    assert SalaConfig.from_dict(fields | {"rope_parameters": {"rope_theta": 5e5}}).rope_theta == 5e5


def test_to_dict_is_read_back(fields: dict[str, Any]) -> None:
    config = SalaConfig.from_dict(fields)
    assert SalaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_truncation_keeps_the_residual_scale(fields: dict[str, Any]) -> None:
    config = SalaConfig.from_dict(fields)
    short = config.truncated(2)
    assert short.num_hidden_layers == 2
    assert short.residual_scale == config.residual_scale
    for layers in (0, -1, 4):
        with pytest.raises(RequestError, match=f"layers is {layers}, but the model has 3"):
            config.truncated(layers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "minicpm3"),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("attn_use_rope", True),
        ("attn_use_output_gate", False),
        ("lightning_use_rope", False),
        ("lightning_scale", "1"),
        ("use_output_gate", False),
        ("use_output_norm", False),
        ("qk_norm", False),
        ("rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
        ("rope_scaling", {"type": "yarn"}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
        ("num_attention_heads", 24),
        ("head_dim", 33),
        ("lightning_nh", 16),
        ("lightning_nkv", 2),
        ("lightning_head_dim", 64),
    ],
)
def test_unsupported_value_is_refused_by_name(fields: dict[str, Any], name: str, value: Any) -> None:
    error = refusal(fields, **{name: value})
    assert isinstance(error, UnsupportedError)
    assert name in str(error)


def test_more_layers_than_any_model_has_are_refused(fields: dict[str, Any]) -> None:
    assert SalaConfig.from_dict(fields | layers(1000)).num_hidden_layers == 1000
    error = refusal(fields, **layers(1001))
    assert str(error) == "mixer_types has 1001 entries: at most 1000 layers are served"


def layers(number: int) -> dict[str, Any]:
    return {"mixer_types": ["minicpm4"] * number, "num_hidden_layers": number}


def test_unsupported_sparse_layer_and_mixer_are_refused_by_name(fields: dict[str, Any]) -> None:
    error = refusal(fields, sparse_config=fields["sparse_config"] | {"use_nope": True})
    assert isinstance(error, UnsupportedError)
    assert "sparse_config.use_nope" in str(error)
    error = refusal(fields, mixer_types=["minicpm4", "mamba2", "minicpm4"])
    assert isinstance(error, UnsupportedError)
    assert str(error) == "mixer_types[1] is 'mamba2': known mixers are lightning-attn, minicpm4"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", None, "hidden_size is missing"),
        ("hidden_size", "128", "hidden_size is '128', expected a positive integer"),
        ("hidden_size", True, "hidden_size is True, expected a positive integer"),
        ("vocab_size", 0, "vocab_size is 0, expected a positive integer"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan, expected a positive number"),
        ("scale_emb", -1, "scale_emb is -1, expected a positive number"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no', expected true or false"),
        ("num_key_value_heads", 3, "num_attention_heads 32 is not a multiple of num_key_value_heads 3"),
        ("num_hidden_layers", 4, "num_hidden_layers is 4 but mixer_types has 3 entries"),
        ("mixer_types", [], "mixer_types is [], expected a list that is not empty"),
        ("eos_token_id", [2, 256], "eos_token_id is [2, 256], expected token ids from 0 to 255"),
        ("bos_token_id", [1, 2], "bos_token_id is [1, 2], expected one token id"),
        ("rope_scaling", "default", "rope_scaling is 'default', expected an object"),
        ("rope_parameters", {"rope_theta": 1e6}, "rope_theta is given as 10000.0 and as 1000000.0"),
        (
            "rope_theta",
            1.6e308,
            "rope_theta is 1.6e+308: its frequencies are no numbers of fp32, use that of the model",
        ),
        ("rope_theta", 1e-300, "rope_theta is 1e-300: its frequencies are no numbers of fp32, use that of the model"),
        ("sparse_config", None, "sparse_config is missing, but mixer_types has 'minicpm4' layers"),
        ("sparse_config", 7, "sparse_config is 7, expected an object"),
        ("sparse_config", {"topk": 1.5}, "sparse_config.topk is 1.5, expected an integer, at least -1"),
        ("sparse_config", {"topk": 0}, "sparse_config: topk is 0, expected a positive integer"),
        ("sparse_config", {"dense_len": -2}, "sparse_config.dense_len is -2, expected an integer, at least -1"),
        ("sparse_config", {"window_size": 100}, "sparse_config: window_size 100 is not a multiple of block_size 64"),
        ("sparse_config", {"kernel_stride": 24}, "sparse_config: block_size 64 is not a multiple of kernel_stride 24"),
        (
            "sparse_config",
            {"topk": 2, "init_blocks": 2},
            "sparse_config: topk 2 leaves no room for 2 init_blocks and the query's own block",
        ),
    ],
)
def test_malformed_field_is_refused_by_name(fields: dict[str, Any], name: str, value: Any, message: str) -> None:
    error = refusal(fields, **{name: value})
    assert isinstance(error, ConfigError)
    assert str(error) == message


def test_rope_parameters_per_layer_type_are_refused(fields: dict[str, Any]) -> None:
    del fields["rope_theta"]
    error = refusal(fields, rope_parameters={"full_attention": {"rope_theta": 1e6}})
    assert "rope_parameters.rope_theta is missing" in str(error)


def test_a_model_without_sparse_layers_needs_no_sparse_config(fields: dict[str, Any]) -> None:
    del fields["sparse_config"]
    config = SalaConfig.from_dict(fields | {"mixer_types": ["lightning-attn"] * 3})
    assert config.mixer_types == (Mixer.LIGHTNING,) * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "holds list, expected a JSON object"),
        (b"{}", "model_type is missing"),
    ],
)
def test_unreadable_file_is_refused_by_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="does not exist"):
        CheckpointFolder.open(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        CheckpointFolder.open(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 47, 48, 127, 128, 191, 192, 1000])
def test_compressed_key_counts_are_those_of_complete_windows(tokens: int) -> None:
    sparse = SparseConfig()
    assert sparse.k1_count(tokens) == sum(start + 32 <= tokens for start in range(0, tokens, 16))
    assert sparse.k2_count(tokens) == sum(start + 128 <= tokens for start in range(0, tokens, 64))
