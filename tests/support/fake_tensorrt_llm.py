"""What the model for TensorRT-LLM uses of TensorRT-LLM, as small as it can be, on the CPU.

Signatures are those of tests/tensorrt_llm/interface.toml, which says where they were read. What the pieces do was read
there too: projections that pack weights, the walk that loads them, and the choice of the last rows for logits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib import import_module
from math import nan
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .fake_tensorrt_llm_cache import BufferConfig, MambaHybridCacheManagerV2, Role

SHELL = ("modeling", "cache_manager", "weight_mapper")
"""Modules of `sala_export.tensorrt_llm` that import TensorRT-LLM."""

MODELS: dict[str, type] = {}
MAPPERS: dict[tuple[str, str | None], type] = {}


def register_auto_model(name: str) -> Any:
    return lambda cls: MODELS.setdefault(name, cls)


def register_mapper(format: str, name: str | None = None) -> Any:  # noqa: A002
    return lambda cls: MAPPERS.setdefault((format, name), cls)


class QuantConfig:
    def __init__(self, quant_algo: str | None = None, exclude_modules: Sequence[str] | None = None) -> None:
        self.quant_algo, self.exclude_modules = quant_algo, exclude_modules
        self.kv_cache_quant_algo: str | None = None

    def is_module_excluded_from_quantization(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.exclude_modules or ())


class ModelConfig:
    """A configuration that was read, for one GPU."""

    def __init__(self, pretrained_config: Any, quant_config: QuantConfig | None = None) -> None:
        self.pretrained_config = pretrained_config
        self.quant_config = quant_config or QuantConfig()
        self.mapping = SimpleNamespace(world_size=1)
        self.spec_config: Any = None
        self.lora_config: Any = None
        self.use_cuda_graph = False
        self.skip_create_weights_in_init = True

    def get_quant_config(self, name: str | None = None) -> QuantConfig:
        return self.quant_config


class WeightMode(StrEnum):
    VANILLA = "vanilla"
    FUSED_QKV_LINEAR = "fused_qkv_linear"
    FUSED_GATE_UP_LINEAR = "fused_gate_up_linear"


class TensorParallelMode(StrEnum):
    COLUMN = "column"
    ROW = "row"


@dataclass(kw_only=True)
class WeightsLoadingConfig:
    weight_mode: WeightMode = WeightMode.VANILLA
    ignore_tensor_parallel: bool = False


class Linear(nn.Module):
    """Multiplies with plain weights. Of quantised ones it keeps what it was given, in `loaded`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        mapping: Any = None,
        tensor_parallel_mode: Any = None,
        gather_output: bool = False,
        quant_config: QuantConfig | None = None,
        weights_loading_config: WeightsLoadingConfig | None = None,
        reduce_output: bool = True,
        skip_create_weights_in_init: bool = False,
        use_custom_cublas_mm: bool = False,
        lora: Any = None,
        allreduce_strategy: Any = None,
        force_dynamic_quantization: bool = False,
        use_cute_dsl_blockscaling_mm: bool = False,
        disable_deep_gemm: bool = False,
        fused_weight_shard_indices_mapping: Any = None,
        nvfp4_allowed_backends: Any = None,
        enable_gemm_allreduce_fusion: bool = True,
    ) -> None:
        super().__init__()
        assert not bias
        self.dtype, self.sizes, self.quant_config = dtype, (out_features, in_features), quant_config
        self.weights_loading_config = weights_loading_config or WeightsLoadingConfig()
        self.loaded: list[dict[str, Any]] = []
        if not skip_create_weights_in_init:
            self.create_weights()

    def create_weights(self) -> None:
        """After modules to leave out are known."""
        self.weight = nn.Parameter(torch.full(self.sizes, nan, dtype=self.dtype), requires_grad=False)

    def load_weights(self, weights: list[dict[str, Any]], allow_partial_loading: bool = False) -> None:
        parts = {WeightMode.VANILLA: 1, WeightMode.FUSED_GATE_UP_LINEAR: 2, WeightMode.FUSED_QKV_LINEAR: 3}
        assert len(weights) == parts[self.weights_loading_config.weight_mode]
        self.loaded = weights
        if self.quant_config is None or self.quant_config.quant_algo is None:
            assert [set(part) for part in weights] == [{"weight"}] * len(weights)
            self.weight.copy_(torch.cat([part["weight"][...] for part in weights]))

    def forward(
        self,
        input: Tensor,  # noqa: A002
        *,
        all_reduce_params: Any = None,
        prefer_window_output: Any = None,
        lora_params: Any = None,
        layer_idx: Any = None,
    ) -> Tensor:
        return functional.linear(input, self.weight)


class Embedding(Linear):
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        mapping: Any = None,
        tensor_parallel_mode: Any = None,
        gather_output: bool = False,
        enable_torch_compile_for_embedding: bool = False,
        use_custom_cublas_mm: bool = False,
    ) -> None:
        super().__init__(embedding_dim, num_embeddings, bias=False, dtype=dtype)
        self.tp_mode = tensor_parallel_mode

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.embedding(input, self.weight)


class RMSNorm(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        eps: float,
        dtype: torch.dtype | None = None,
        device: Any = None,
        has_weights: bool = True,
    ) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden_size, dtype=dtype), requires_grad=False), eps

    def forward(self, hidden_states: Tensor, residual: Any = ...) -> Tensor:
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden_states.dtype)


class GatedMLP(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        activation: Any = functional.silu,
        dtype: torch.dtype | None = None,
        config: ModelConfig | None = None,
        overridden_tp_size: int | None = None,
        reduce_output: bool = True,
        layer_idx: int | None = None,
    ) -> None:
        super().__init__()
        assert config is not None
        gate_up = WeightsLoadingConfig(weight_mode=WeightMode.FUSED_GATE_UP_LINEAR)
        common: dict[str, Any] = {"bias": bias, "dtype": dtype, "quant_config": config.quant_config}
        common["skip_create_weights_in_init"] = config.skip_create_weights_in_init
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, weights_loading_config=gate_up, **common)
        self.down_proj = Linear(intermediate_size, hidden_size, **common)

    def forward(
        self,
        x: Tensor,
        all_rank_num_tokens: Any = None,
        final_all_reduce_params: Any = None,
        lora_params: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        product: Tensor = self.down_proj(functional.silu(gate) * up)
        return product


class DecoderModel(nn.Module):
    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__()
        self.dtype, self.model_config = model_config.pretrained_config.torch_dtype, model_config


class PostInitCaller(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.__post_init__()
        return made


class DecoderModelForCausalLM(nn.Module, metaclass=PostInitCaller):
    def __init__(self, model: DecoderModel, *, config: ModelConfig, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.model_config, self.model = config, model
        column = TensorParallelMode.COLUMN
        self.lm_head = Linear(
            hidden_size, vocab_size, bias=False, dtype=config.pretrained_config.torch_dtype, tensor_parallel_mode=column
        )
        if config.pretrained_config.tie_word_embeddings:
            assert model.embed_tokens.tp_mode == column
            self.lm_head.weight = model.embed_tokens.weight

    def __post_init__(self) -> None:
        fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        for name, module in self.named_modules():
            parent, _, role = name.rpartition(".")
            sources = [name, *(f"{parent}.{each}" for each in fused.get(role, ()))]
            if any(map(self.model_config.quant_config.is_module_excluded_from_quantization, sources)):
                module.quant_config = QuantConfig()
            if isinstance(module, Linear) and not hasattr(module, "weight"):
                module.create_weights()

    @property
    def config(self) -> Any:
        return self.model_config.pretrained_config

    @classmethod
    def get_model_defaults(cls, llm_args: Any) -> dict[str, Any]:
        return {}

    @classmethod
    def get_preferred_kv_cache_manager_version(cls, pretrained_config: Any = None) -> str | None:
        return None

    def forward(
        self,
        attn_metadata: Any,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_context_logits: bool = False,
        spec_metadata: Any = None,
        lora_params: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attn_metadata=attn_metadata,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            spec_metadata=spec_metadata,
            lora_params=lora_params,
        )
        if not return_context_logits:
            output = output[attn_metadata.seq_lens.cumsum(0) - 1]
        logits: Tensor = self.lm_head(output).float()
        return logits

    def load_weights(
        self,
        weights: dict[str, Any],
        weight_mapper: Any = None,
        skip_modules: Sequence[str] = (),
        params_map: Any = None,
        allow_partial_loading: bool = False,
    ) -> None:
        for name, module in self.named_modules():
            if not module._parameters or weight_mapper.should_skip_module(name):
                continue
            *path, role = name.split(".")
            if role in weight_mapper.mapping:
                module.load_weights(weight_mapper.apply_callbacks(module, role, path, weights))
                continue
            own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
            if isinstance(module, Linear):
                module.load_weights([own])
            elif own:
                for key, parameter in module.named_parameters(recurse=False):
                    parameter.copy_(own[key][...])


class HfWeightMapper:
    def __init__(self) -> None:
        self.mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def init_model_and_config(self, model: nn.Module, config: ModelConfig) -> None:
        self.model, self.config = model, config

    def apply_callbacks(
        self, module: nn.Module, module_name: str, module_names_breakdown: list[str], weights: dict[str, Any]
    ) -> list[dict[str, Any]]:
        prefixes = [".".join([*module_names_breakdown, source, ""]) for source in self.mapping[module_name]]
        return [
            {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            for prefix in prefixes
        ]

    def should_skip_module(self, module_name: str) -> bool:
        return bool(self.model.config.tie_word_embeddings) and module_name.startswith("lm_head")

    def preprocess_weights(self, weights: dict[str, Any]) -> Any:
        """Nothing by default."""


def get_kv_cache_manager_cls(
    model_config: ModelConfig,
    kv_cache_config: Any,
    is_disagg: bool = False,
    cache_transceiver_config: Any = None,
) -> type:
    is_hybrid = bool(getattr(model_config.pretrained_config, "hybrid_override_pattern", None))
    return MambaHybridCacheManagerV2 if is_hybrid and kv_cache_config.use_kv_cache_manager_v2 else SimpleNamespace


_TORCH = "tensorrt_llm._torch"
MODULES: dict[str, tuple[Any, ...]] = {
    f"{_TORCH}.models.modeling_utils": (DecoderModel, DecoderModelForCausalLM, register_auto_model, register_mapper),
    f"{_TORCH}.models.checkpoints.hf.weight_mapper": (HfWeightMapper,),
    f"{_TORCH}.modules.embedding": (Embedding,),
    f"{_TORCH}.modules.gated_mlp": (GatedMLP,),
    f"{_TORCH}.modules.linear": (Linear, TensorParallelMode, WeightMode, WeightsLoadingConfig),
    f"{_TORCH}.modules.rms_norm": (RMSNorm,),
    f"{_TORCH}.pyexecutor._util": (get_kv_cache_manager_cls,),
    f"{_TORCH}.pyexecutor.kv_cache.kv_cache_manager_v2": (Role,),
    f"{_TORCH}.pyexecutor.kv_cache.mamba_cache_manager": (MambaHybridCacheManagerV2,),
    "tensorrt_llm.runtime.kv_cache_manager_v2": (BufferConfig,),
}
"""What each module of TensorRT-LLM offers here."""


@contextmanager
def fake_tensorrt_llm() -> Iterator[ModuleType]:
    """Import `sala_export.tensorrt_llm.modeling` with the fakes in TensorRT-LLM's place. Nothing stays imported."""
    before = dict(sys.modules)
    for name, contents in MODULES.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            module = sys.modules.setdefault(path, ModuleType(path))
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
        vars(sys.modules[name]).update({each.__name__: each for each in contents})
    try:
        yield import_module("sala_export.tensorrt_llm.modeling")
    finally:
        added = [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm" and name not in before]
        for name in [*added, *(f"sala_export.tensorrt_llm.{each}" for each in SHELL)]:
            sys.modules.pop(name, None)
