"""MiniCPM-SALA of TensorRT-LLM's projections, norms and embedding, around the mixers of `mixer_steps.py`.

N tokens of a batch, H hidden size. Module names are the checkpoint's, but for the packed `qkv_proj` and `gate_up_proj`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensorrt_llm._torch.models.modeling_utils import DecoderModel, DecoderModelForCausalLM, register_auto_model
from tensorrt_llm._torch.modules.embedding import Embedding
from tensorrt_llm._torch.modules.gated_mlp import GatedMLP
from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode, WeightMode, WeightsLoadingConfig
from tensorrt_llm._torch.modules.rms_norm import RMSNorm
from torch import Tensor, nn

from ..checkpoint.config import ARCHITECTURE, Mixer, SalaConfig
from ..checkpoint.keymap import MIXER_MODULES, mixer_shapes
from ..errors import UnsupportedError
from ..model.rope import inv_freq_tensor, rope_cos_sin
from .cache_manager import SalaCacheManager, install_cache_manager
from .configuration import add_hybrid_fields, register_configuration
from .mixer_steps import MixerSteps
from .step_groups import RequestStep, StepGroup, step_groups
from .weight_mapper import MiniCPMSALAWeightMapper

register_configuration()
install_cache_manager()


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniCPMSALABatch:
    """What every layer of one step shares."""

    manager: SalaCacheManager
    groups: Sequence[StepGroup]
    rope: Tensor
    """fp32 [N, head_dim]"""


class MiniCPMSALAMixer(nn.Module):
    """The packed projection, the operator of a mixer on the caches, and the output projection."""

    def __init__(self, model_config: Any, config: SalaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.mixer = config.mixer_types[layer]
        self.roles = MIXER_MODULES[self.mixer]
        self.steps = MixerSteps(config, self.mixer)
        shapes = mixer_shapes(config, self.mixer)
        keys = sum(shapes[role][0] for role in ("q_proj", "k_proj", "v_proj"))
        qkv = WeightsLoadingConfig(weight_mode=WeightMode.FUSED_QKV_LINEAR)
        self.qkv_proj = _linear(model_config, config.hidden_size, keys, qkv)
        self.add_module(self.roles.gate, _linear(model_config, config.hidden_size, shapes[self.roles.gate][0]))
        for norm in self.roles.norms:
            # The operator computes it: the module holds its weight.
            self.add_module(norm, _norm(model_config, config, shapes[norm][0]))
        self.o_proj = _linear(model_config, shapes["o_proj"][1], config.hidden_size)

    def forward(self, x: Tensor, batch: MiniCPMSALABatch) -> Tensor:
        packed = torch.cat((self.qkv_proj(x), self.get_submodule(self.roles.gate)(x)), dim=-1)
        manager = batch.manager
        if self.mixer is Mixer.LIGHTNING:
            norms = {norm: self.get_parameter(f"{norm}.weight") for norm in self.roles.norms}
            states = manager.get_ssm_states(self.layer)
            y = self.steps.lightning(packed, batch.groups, norms, batch.rope, states)
        else:
            y = self.steps.sparse(packed, batch.groups, manager.sparse_pool(self.layer), manager.layout)
        projected: Tensor = self.o_proj(y)
        return projected


class MiniCPMSALALayer(nn.Module):
    """Mixer and MLP, each normed before and scaled by `residual_scale` after."""

    def __init__(self, model_config: Any, config: SalaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = MiniCPMSALAMixer(model_config, config, layer)
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            bias=False,
            dtype=model_config.pretrained_config.torch_dtype,
            config=model_config,
            layer_idx=layer,
        )
        self.input_layernorm = _norm(model_config, config, config.hidden_size)
        self.post_attention_layernorm = _norm(model_config, config, config.hidden_size)
        self.residual_scale = config.residual_scale

    def forward(self, hidden: Tensor, batch: MiniCPMSALABatch) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), batch) * self.residual_scale
        mixed: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden)) * self.residual_scale
        return mixed


class MiniCPMSALAModel(DecoderModel):
    """Embedding, layers and final norm."""

    def __init__(self, model_config: Any) -> None:
        super().__init__(model_config)
        config = add_hybrid_fields(model_config.pretrained_config)
        _require_served(model_config)
        self.sala_config = config
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            dtype=model_config.pretrained_config.torch_dtype,
            mapping=model_config.mapping,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            gather_output=True,
        )
        self.layers = nn.ModuleList(
            MiniCPMSALALayer(model_config, config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = _norm(model_config, config, config.hidden_size)

    def forward(
        self,
        attn_metadata: Any,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute rows X [N, H], ready for `lm_head`, of the tokens of a batch.

        Args: `attn_metadata` prepared by TensorRT-LLM; input_ids integers [N], or inputs_embeds X [N, H]; position_ids
        integers [1, N] or [N].
        """
        if position_ids is None or (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give position_ids, and one of input_ids and inputs_embeds")
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = embedded * self.sala_config.scale_emb
        batch = self._batch(attn_metadata, position_ids.flatten())
        for layer in self.layers:
            hidden = layer(hidden, batch)
        rows: Tensor = self.norm(hidden) / self.sala_config.logit_divisor
        return rows

    def _batch(self, metadata: Any, positions: Tensor) -> MiniCPMSALABatch:
        manager: SalaCacheManager = metadata.kv_cache_manager
        lengths, ids = metadata.seq_lens.tolist(), metadata.request_ids[: len(metadata.seq_lens)]
        cached = metadata.kv_cache_params.num_cached_tokens_per_seq[: len(lengths)]
        requests = [
            RequestStep(
                tokens=tokens,
                cached_tokens=int(before),
                prompt_tokens=manager.prompt_length(request_id),
                slots=slots,
            )
            for tokens, before, request_id, slots in zip(lengths, cached, ids, manager.page_slots(ids), strict=True)
        ]
        state_slots = metadata.mamba_metadata.state_indices[: len(requests)]
        groups = step_groups(requests, metadata.num_contexts, state_slots, manager.layout)
        config = self.sala_config
        inv_freq = inv_freq_tensor(config.rope_theta, config.head_dim).to(positions.device)
        return MiniCPMSALABatch(manager=manager, groups=groups, rope=rope_cos_sin(positions, inv_freq))


@register_auto_model(ARCHITECTURE)
class MiniCPMSALAForCausalLM(DecoderModelForCausalLM):
    """The language model that TensorRT-LLM makes for checkpoints of this architecture."""

    def __init__(self, model_config: Any) -> None:
        """Raises: ConfigError or UnsupportedError for a configuration or a way to run it that is not served."""
        super().__init__(
            MiniCPMSALAModel(model_config),
            config=model_config,
            hidden_size=model_config.pretrained_config.hidden_size,
            vocab_size=model_config.pretrained_config.vocab_size,
        )

    @classmethod
    def get_model_defaults(cls, llm_args: Any) -> dict[str, Any]:
        """Options where the user gives none: no CUDA graphs, no reuse of blocks, states in float32."""
        return {
            "cuda_graph_config": None,
            "kv_cache_config": {"enable_block_reuse": False, "mamba_ssm_cache_dtype": "float32"},
        }

    @classmethod
    def get_preferred_kv_cache_manager_version(cls, pretrained_config: Any = None) -> str:
        """The version that has one manager for states and pages."""
        return "V2"

    def load_weights(self, weights: Any, weight_mapper: MiniCPMSALAWeightMapper, **options: Any) -> None:
        """Load a checkpoint. Raises: CheckpointError for scales that TensorRT-LLM cannot use."""
        super().load_weights(weight_mapper.preprocess_weights(weights), weight_mapper=weight_mapper, **options)


def _linear(model_config: Any, inputs: int, outputs: int, loading: WeightsLoadingConfig | None = None) -> Linear:
    return Linear(
        inputs,
        outputs,
        bias=False,
        dtype=model_config.pretrained_config.torch_dtype,
        mapping=model_config.mapping,
        quant_config=model_config.get_quant_config(),
        weights_loading_config=loading,
        skip_create_weights_in_init=model_config.skip_create_weights_in_init,
    )


def _norm(model_config: Any, config: SalaConfig, width: int) -> RMSNorm:
    return RMSNorm(hidden_size=width, eps=config.rms_norm_eps, dtype=model_config.pretrained_config.torch_dtype)


def _require_served(model_config: Any) -> None:
    """Raises: UnsupportedError for ways to run the model that this package does not serve."""
    quant = model_config.quant_config
    refused: Mapping[str, bool] = {
        "several GPUs: a Lightning layer norms all heads together": model_config.mapping.world_size > 1,
        "speculative decoding": model_config.spec_config is not None,
        "LoRA": model_config.lora_config is not None,
        "CUDA graphs: leave cuda_graph_config unset": model_config.use_cuda_graph,
        "keys and values of 8 or 4 bits: kernels read 16 bits": bool(quant and quant.kv_cache_quant_algo),
        "float16: use bfloat16": model_config.pretrained_config.torch_dtype is torch.float16,
    }
    for what, is_asked_for in refused.items():
        if is_asked_for:
            raise UnsupportedError(f"MiniCPM-SALA on TensorRT-LLM does not serve {what}")
