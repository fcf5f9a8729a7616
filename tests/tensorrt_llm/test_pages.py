"""Pages, groups and configuration: what decides where TensorRT-LLM keeps a model's caches."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import copy_checkpoint, edit_json
from support.golden import GOLDEN_CHECKPOINT
from support.tensorrt_llm_batches import Server, load_model
from transformers import AutoConfig

from sala_export.checkpoint.config import SparseConfig
from sala_export.errors import UnsupportedError
from sala_export.installation import tensorrt_llm_module
from sala_export.tensorrt_llm import step_groups as groups_module
from sala_export.tensorrt_llm.page_layout import PageLayout
from sala_export.tensorrt_llm.step_groups import RequestStep, step_groups


@pytest.fixture(scope="module")
def model(shell: ModuleType) -> Any:
    return load_model(GOLDEN_CHECKPOINT)


@pytest.mark.parametrize("page_tokens", [16, 32, 64, 128])
def test_compressed_keys_lie_with_the_last_key_that_they_average(page_tokens: int) -> None:
    """So no two share a place, and a full page depends on no later token."""
    layout = PageLayout.of(SparseConfig(), page_tokens)
    taken = set()
    for kind, size, stride in ((layout.k1, 32, 16), (layout.k2, 128, 64)):
        windows = torch.arange(kind.count(4096))
        page, row = kind.place(windows, page_tokens)
        for window, place in zip(windows.tolist(), zip(page.tolist(), row.tolist(), strict=True), strict=True):
            assert place[0] == (stride * window + size - 1) // page_tokens
            assert place not in taken
            assert 0 <= place[1] < layout.rows
            taken.add(place)
    assert layout.rows == {16: 2, 32: 3, 64: 5, 128: 10}[page_tokens]


def test_pages_that_windows_do_not_fit_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="tokens_per_block is 40"):
        PageLayout.of(SparseConfig(), 40)


def test_requests_share_calls_as_long_as_their_pages_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "MAX_GATHERED_TOKENS", 400)
    layout = PageLayout.of(SparseConfig(), 32)

    def request(tokens: int, cached: int, prompt: int = 0) -> RequestStep:
        return RequestStep(tokens=tokens, cached_tokens=cached, prompt_tokens=prompt, slots=range(100, 200))

    batch = [request(7, 0, 9000), request(50, 7), *(request(1, cached) for cached in (19, 100, 120, 300, 2000, 5))]
    found = step_groups(batch, 2, torch.arange(8, dtype=torch.int32), layout)
    assert [(group.rows.start, group.rows.stop) for group in found] == [
        (0, 7),
        (7, 57),
        (57, 60),
        (60, 61),
        (61, 62),
        (62, 63),
    ]
    assert [group.begins for group in found] == [True, False, *[False] * 4]
    assert found[0].context_length.tolist() == [9000]
    assert found[2].context_length.tolist() == [20, 101, 121]
    # Slots of pages that a request does not have are 0.
    assert found[2].slots.tolist()[:2] == [[100, 0, 0, 0], [100, 101, 102, 103]]
    assert found[3].slots.shape == (1, 10)
    with pytest.raises(UnsupportedError, match="speculative"):
        step_groups([request(2, 10)], 0, torch.zeros(1, dtype=torch.int32), layout)


def test_configuration_of_a_checkpoint_says_what_a_hybrid_says(shell: ModuleType) -> None:
    config = AutoConfig.from_pretrained(GOLDEN_CHECKPOINT)
    assert type(config).__name__ == "MiniCPMSALAConfig"
    assert config.hybrid_override_pattern == "*M*"
    assert (config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size) == (32, 32, 32)
    assert config.mamba_ssm_cache_dtype == "float32"


def test_model_of_one_kind_of_layers_is_refused(shell: ModuleType, tmp_path: Path) -> None:
    path = copy_checkpoint(GOLDEN_CHECKPOINT, tmp_path / "one")
    edit_json(path / "config.json", lambda fields: fields.update(mixer_types=["minicpm4"] * 3))
    with pytest.raises(UnsupportedError, match="mixer_types has no 'lightning-attn'"):
        AutoConfig.from_pretrained(path)


def test_manager_accounts_for_compressed_keys(shell: ModuleType, model: Any) -> None:
    server = Server(shell, model, page_tokens=32)
    config = model.config
    key = config.num_key_value_heads * config.head_dim * 4
    manager = server.manager
    assert manager.get_layer_bytes_per_token(0, "all") == 2 * key + 3 * key // 32
    assert manager.get_layer_bytes_per_token(1, "all") == 0
    assert manager._attention_cache_bytes_per_token() == 2 * (2 * key + 3 * key // 32)
    per_token, fixed = type(manager).get_cache_size_per_token(
        model.model_config, None, max_batch_size=3, kv_cache_config=None, tokens_per_block=32
    )
    assert (per_token, fixed) == (manager._attention_cache_bytes_per_token(), 7)


def test_other_models_keep_their_manager_and_other_managers_are_refused(shell: ModuleType, model: Any) -> None:
    choose = shell.install_cache_manager.__globals__["_util"].get_kv_cache_manager_cls
    other = copy.copy(model.model_config)
    other.pretrained_config = SimpleNamespace(model_type="nemotron_h", hybrid_override_pattern="M*")
    assert choose(other, SimpleNamespace(use_kv_cache_manager_v2=True)).__name__ == "MambaHybridCacheManagerV2"
    with pytest.raises(UnsupportedError, match="use_kv_cache_manager_v2"):
        choose(model.model_config, SimpleNamespace(use_kv_cache_manager_v2=False))


def test_states_of_16_bits_are_refused(shell: ModuleType, model: Any) -> None:
    changed = copy.copy(model.config)
    changed.mamba_ssm_cache_dtype = "bfloat16"
    served = SimpleNamespace(config=changed, model_config=model.model_config)
    with pytest.raises(UnsupportedError, match=r"mamba_ssm_cache_dtype is torch\.bfloat16"):
        Server(shell, served, page_tokens=32)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("spec_config", object(), "speculative decoding"),
        ("lora_config", object(), "LoRA"),
        ("use_cuda_graph", True, "CUDA graphs"),
        ("mapping", SimpleNamespace(world_size=2), "several GPUs"),
        ("quant_config", SimpleNamespace(kv_cache_quant_algo="FP8"), "8 or 4 bits"),
        ("pretrained_config", torch.float16, "float16"),
    ],
)
def test_ways_to_run_that_are_not_served_are_refused(
    shell: ModuleType, model: Any, name: str, value: Any, message: str
) -> None:
    config = copy.copy(model.model_config)
    if name == "pretrained_config":
        config.pretrained_config = copy.copy(model.config)
        config.pretrained_config.torch_dtype = value
    else:
        setattr(config, name, value)
    with pytest.raises(UnsupportedError, match=rf"^MiniCPM-SALA on TensorRT-LLM does not serve .*{message}"):
        shell.MiniCPMSALAForCausalLM(config)


def test_options_where_the_user_gives_none(shell: ModuleType) -> None:
    defaults = shell.MiniCPMSALAForCausalLM.get_model_defaults(None)
    assert defaults["cuda_graph_config"] is None
    assert defaults["kv_cache_config"] == {"enable_block_reuse": False, "mamba_ssm_cache_dtype": "float32"}
    assert shell.MiniCPMSALAForCausalLM.get_preferred_kv_cache_manager_version() == "V2"


def test_directory_for_custom_module_dirs_has_nothing_beside_it(shell: ModuleType) -> None:
    """TensorRT-LLM puts its parent at the front of sys.path: a neighbour would hide another package of that name."""
    import importlib
    import sys

    directory = tensorrt_llm_module()
    assert {path.name for path in directory.parent.iterdir()} == {directory.name}
    sys.path.insert(0, str(directory.parent))
    try:
        module = importlib.import_module(directory.name)
    finally:
        sys.path.remove(str(directory.parent))
        sys.modules.pop(directory.name, None)
    assert module.MiniCPMSALAForCausalLM is shell.MiniCPMSALAForCausalLM
