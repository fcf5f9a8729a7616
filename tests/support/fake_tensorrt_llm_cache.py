"""The hybrid cache manager of TensorRT-LLM, as small as the model needs it, on the CPU (`fake_tensorrt_llm.py`).

Pages and states are views of coalesced pools, as there. Pools begin as NaN, and what a request leaves in them stays
there for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, nan
from typing import Any

import torch
from torch import Tensor


class Role:
    KEY, VALUE, INDEX_KEY, ALL = "key", "value", "index_key", "all"


@dataclass(slots=True)
class BufferConfig:
    role: str
    size: int


class MambaHybridCacheManagerV2:
    """Pages of layers of `layer_mask`, coalesced by slot, and states of the others, coalesced too.

    `grow` stands for the scheduler, which gives a request its pages before a step.
    """

    def __init__(
        self,
        mamba_d_state: int,
        mamba_d_conv: int,
        mamba_num_heads: int,
        mamba_n_groups: int,
        mamba_head_dim: int,
        mamba_num_layers: int,
        mamba_layer_mask: list[bool],
        mamba_cache_dtype: torch.dtype,
        mamba_ssm_cache_dtype: torch.dtype,
        kv_cache_config: Any,
        kv_cache_type: Any,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        tokens_per_block: int,
        max_seq_len: int,
        max_batch_size: int,
        mapping: Any,
        dtype: torch.dtype = torch.float16,
        spec_config: Any = None,
        layer_mask: list[bool] | None = None,
        is_estimating_kv_cache: bool = False,
        is_draft: bool = False,
        use_replay_state_update: bool = False,
        mamba_ssm_stochastic_rounding: bool = False,
        conv_state_layout: str = "x_b_c",
        state_update_strategy: Any = None,
        aux_cache_extensions: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        assert layer_mask is not None
        self.pp_layers = list(range(len(layer_mask)))
        self.num_local_layers = len(self.pp_layers)
        self.layer_offsets = {layer: layer for layer in self.pp_layers}
        self.layer_to_pool_mapping_dict = {layer: int(not masked) for layer, masked in enumerate(layer_mask)}
        self.ssm_state_dtype, self.dtype, self.tokens_per_block = mamba_ssm_cache_dtype, dtype, tokens_per_block
        self.heads, self.head_dim = [num_kv_heads * masked for masked in layer_mask], head_dim
        attention = [layer for layer, masked in enumerate(layer_mask) if masked]
        self.places = {layer: place for place, layer in enumerate(attention)}
        recurrent = [layer for layer, masked in enumerate(mamba_layer_mask) if masked]
        self.state_places = {layer: place for place, layer in enumerate(recurrent)}
        slots = max_batch_size * ceil(max_seq_len / tokens_per_block)
        # Slots with the keys and values of all layers, one layer after the other.
        shape = (slots, len(attention), 2, num_kv_heads, tokens_per_block, head_dim)
        self.pages = torch.full(shape, nan, dtype=dtype)
        extra = self._extra_buffers_per_layer(tokens_per_block=tokens_per_block)
        assert sorted(extra) == attention
        (size,) = {buffer.size for buffers in extra.values() for buffer in buffers}
        self.index_keys = torch.full((slots, len(attention), size // dtype.itemsize), nan, dtype=dtype)
        state = (max_batch_size + 1, len(recurrent), mamba_num_heads, mamba_head_dim, mamba_d_state)
        self.states = torch.full(state, nan, dtype=mamba_ssm_cache_dtype)
        shuffled = torch.randperm(slots, generator=torch.Generator().manual_seed(5))
        self.free_slots, self.free_states = shuffled.tolist(), list(range(max_batch_size + 1))[::-1]
        self.slots: dict[int, list[int]] = {}
        self.state_slots: dict[int, int] = {}

    def grow(self, request_id: int, tokens: int) -> None:
        own = self.slots.setdefault(request_id, [])
        while len(own) * self.tokens_per_block < tokens:
            own.append(self.free_slots.pop())

    def _extra_buffers_per_layer(self, *, tokens_per_block: int) -> dict[int, list[BufferConfig]]:
        return {}

    def get_layer_bytes_per_token(self, local_layer_idx: int, data_role: str) -> int:
        assert data_role in (Role.KEY, Role.VALUE, Role.ALL)
        return (1 + (data_role == Role.ALL)) * self.heads[local_layer_idx] * self.head_dim * self.dtype.itemsize

    def _attention_cache_bytes_per_token(self) -> int:
        return sum(self.get_layer_bytes_per_token(layer, Role.ALL) for layer in range(self.num_local_layers))

    @staticmethod
    def get_cache_size_per_token(
        model_config: Any,
        mapping: Any,
        *,
        max_batch_size: int,
        kv_cache_config: Any,
        num_layers: int | None = None,
        tokens_per_block: int = 32,
        max_seq_len: int | None = None,
        **kwargs: Any,
    ) -> tuple[int, int]:
        config = model_config.pretrained_config
        layers = config.hybrid_override_pattern.count("*")
        return 2 * layers * config.num_key_value_heads * config.head_dim * config.torch_dtype.itemsize, 7

    def prepare_resources(self, scheduled_batch: Any) -> None:
        for request in (*scheduled_batch.context_requests, *scheduled_batch.generation_requests):
            if request.py_request_id not in self.state_slots:
                self.state_slots[request.py_request_id] = self.free_states.pop()

    def free_resources(self, request: Any, pin_on_release: bool = False) -> None:
        self.free_slots += self.slots.pop(request.py_request_id)[::-1]
        self.free_states.append(self.state_slots.pop(request.py_request_id))

    def get_ssm_states(self, layer_idx: int) -> Tensor:
        return self.states[:, self.state_places[layer_idx]]

    def get_buffers(self, layer_idx: int, kv_layout: str = "NHD") -> Tensor:
        """Pages [n, 2, G, P, D] from the layer's first on: those of other layers lie between them."""
        assert kv_layout == "HND"
        return self.pages.flatten(0, 1)[self.places[layer_idx] :]

    def get_index_k_buffer(
        self,
        layer_idx: int,
        *,
        num_heads: int = 1,
        head_dim: int,
        dtype: torch.dtype = torch.bfloat16,
        kv_layout: str = "NHD",
    ) -> Tensor:
        assert dtype is self.dtype
        assert kv_layout == "NHD"
        return self.index_keys[:, self.places[layer_idx]].unflatten(1, (self.tokens_per_block, num_heads, head_dim))

    def get_layer_page_index_scale(self, layer_idx: int) -> int:
        return 2 * len(self.places)

    def get_batch_cache_indices(
        self,
        request_ids: list[int],
        layer_idx: int | None = None,
        num_blocks_per_seq: Sequence[int] | None = None,
        *,
        raw_indices: bool = False,
    ) -> list[list[int]]:
        scale = 1 if raw_indices else len(self.places)
        return [[slot * scale for slot in self.slots[request_id]] for request_id in request_ids]
