"""Runs batches through the model for TensorRT-LLM on the fakes, as its executor does: chunks first, then tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from sala_export.checkpoint.reader import Checkpoint

from .fake_tensorrt_llm import MAPPERS, MODELS, ModelConfig, QuantConfig
from .quantized_reference import stored_tensors

ARCHITECTURE = "MiniCPMSALAForCausalLM"


class Request:
    """A request as the executor and the cache manager see it."""

    def __init__(self, request_id: int, prompt: Tensor) -> None:
        self.py_request_id, self.prompt, self.prompt_len = request_id, prompt, len(prompt)
        self.tokens = 0
        """Tokens that were fed."""


def load_model(path: Path, dtype: torch.dtype = torch.float32, quant_config: QuantConfig | None = None) -> Any:
    """The model of a checkpoint, made and loaded in the order in which TensorRT-LLM does it."""
    pretrained = AutoConfig.from_pretrained(path)
    pretrained.torch_dtype = dtype
    config = ModelConfig(pretrained, quant_config)
    model = MODELS[pretrained.architectures[0]](config)
    mapper = MAPPERS[("HF", ARCHITECTURE)]()
    mapper.init_model_and_config(model, config)
    with torch.no_grad():
        model.load_weights(stored_tensors(path), mapper)
    return model.eval()


class Server:
    """A model with its caches."""

    def __init__(
        self, shell: ModuleType, model: Any, *, page_tokens: int, max_tokens: int = 1600, max_batch: int = 3
    ) -> None:
        self.model = model
        config = model.config
        # Found where the executor looks: the shell wrapped it there.
        chosen = shell.SalaCacheManager.__init__.__globals__["_util"].get_kv_cache_manager_cls
        pattern = config.hybrid_override_pattern
        self.manager = chosen(model.model_config, SimpleNamespace(use_kv_cache_manager_v2=True))(
            config.ssm_state_size,
            config.conv_kernel,
            config.mamba_num_heads,
            config.n_groups,
            config.mamba_head_dim,
            pattern.count("M"),
            [letter == "M" for letter in pattern],
            config.torch_dtype,
            getattr(torch, config.mamba_ssm_cache_dtype),
            SimpleNamespace(),
            None,
            num_layers=pattern.count("*"),
            layer_mask=[letter == "*" for letter in pattern],
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            tokens_per_block=page_tokens,
            max_seq_len=max_tokens,
            max_batch_size=max_batch,
            mapping=None,
            dtype=config.torch_dtype,
            max_num_tokens=8192,
            is_disagg=False,
        )

    def step(self, chunks: Sequence[tuple[Request, int]] = (), tokens: Sequence[tuple[Request, int]] = ()) -> Tensor:
        """Feed chunks of so many tokens of prompts, then one token each to requests that generate.

        Returns: fp32 logits [requests, V] of the last token of each.
        """
        contexts, generating = [request for request, _ in chunks], [request for request, _ in tokens]
        fed = [(r, r.prompt[r.tokens : r.tokens + count]) for r, count in chunks]
        fed += [(r, torch.tensor([token])) for r, token in tokens]
        for request, ids in fed:
            self.manager.grow(request.py_request_id, request.tokens + len(ids))
        self.manager.prepare_resources(SimpleNamespace(context_requests=contexts, generation_requests=generating))
        ids = [request.py_request_id for request, _ in fed]
        slots = [self.manager.state_slots[each] for each in ids]
        # Buffers of the executor are longer than the batch.
        state_indices = torch.tensor([*slots, 0, 0], dtype=torch.int32)
        metadata = SimpleNamespace(
            kv_cache_manager=self.manager,
            seq_lens=torch.tensor([len(each) for _, each in fed], dtype=torch.int32),
            num_contexts=len(contexts),
            request_ids=ids,
            kv_cache_params=SimpleNamespace(num_cached_tokens_per_seq=[request.tokens for request, _ in fed]),
            mamba_metadata=SimpleNamespace(state_indices=state_indices),
        )
        positions = torch.cat([torch.arange(request.tokens, request.tokens + len(each)) for request, each in fed])
        with torch.no_grad():
            logits: Tensor = self.model(metadata, torch.cat([each for _, each in fed]), positions.to(torch.int32)[None])
        for request, each in fed:
            request.tokens += len(each)
        return logits

    def free(self, request: Request) -> None:
        """End a request. What it wrote stays in its pages and its state."""
        self.manager.free_resources(request)


def checkpoint_quant_config(path: Path) -> QuantConfig:
    """What `hf_quant_config.json` says of a checkpoint, as TensorRT-LLM would read it."""
    from sala_export.tensorrt_llm.quant_config import quant_config

    fields = quant_config(Checkpoint.open(path))["quantization"]
    return QuantConfig(fields["quant_algo"], fields["exclude_modules"])
