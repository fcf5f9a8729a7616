"""The caches of MiniCPM-SALA in TensorRT-LLM: its hybrid manager, with compressed keys in the pages of sparse layers.

The hybrid manager keeps Lightning states as Mamba states, and keys and values in pages. It lets a subclass add a buffer
to every page of a layer. So compressed keys are allocated, shared, moved to the host and freed with their page.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tensorrt_llm._torch.pyexecutor import _util
from tensorrt_llm._torch.pyexecutor.kv_cache.kv_cache_manager_v2 import Role
from tensorrt_llm._torch.pyexecutor.kv_cache.mamba_cache_manager import MambaHybridCacheManagerV2
from tensorrt_llm.runtime.kv_cache_manager_v2 import BufferConfig

from ..checkpoint.config import MODEL_TYPE, SalaConfig, SparseConfig
from ..errors import UnsupportedError
from .configuration import add_hybrid_fields
from .page_layout import PageLayout, SparsePool


class SalaCacheManager(MambaHybridCacheManagerV2):
    """One manager of every cache of a model. `for_model` makes the class for one."""

    sparse_config: ClassVar[SparseConfig]

    @classmethod
    def for_model(cls, config: SalaConfig) -> type[SalaCacheManager]:
        """The class whose pages have room for the compressed keys of this model."""
        return type(cls.__name__, (cls,), {"sparse_config": config.sparse_config})

    def __init__(self, *args: Any, layer_mask: list[bool], tokens_per_block: int, **kwargs: Any) -> None:
        """Args: those of the hybrid manager. `layer_mask` is true for sparse layers.

        Raises: UnsupportedError if the pages or the type of states do not serve the model.
        """
        # The hybrid manager asks for the extra buffers while it is made.
        self.layout = PageLayout.of(self.sparse_config, tokens_per_block)
        self.sparse_layers = [layer for layer, is_sparse in enumerate(layer_mask) if is_sparse]
        self._prompt_lengths: dict[int, int] = {}
        super().__init__(*args, layer_mask=layer_mask, tokens_per_block=tokens_per_block, **kwargs)
        if self.ssm_state_dtype is not torch.float32:
            raise UnsupportedError(
                f"kv_cache_config.mamba_ssm_cache_dtype is {self.ssm_state_dtype}: Lightning states are float32, leave "
                "it at 'float32'"
            )
        if len({self.layer_to_pool_mapping_dict[self.layer_offsets[layer]] for layer in self.sparse_layers}) > 1:
            raise UnsupportedError("sparse layers have pages in several groups: leave max_attention_window unset")

    def _compressed_bytes_per_token(self, local_layer: int) -> int:
        if self.pp_layers[local_layer] not in self.sparse_layers:
            return 0
        key_bytes: int = super().get_layer_bytes_per_token(local_layer, Role.KEY)
        return self.layout.rows * key_bytes // self.layout.page_tokens

    def _extra_buffers_per_layer(self, *, tokens_per_block: int) -> dict[int, list[Any]]:
        return {
            self.layer_offsets[layer]: [
                BufferConfig(
                    role=Role.INDEX_KEY,
                    size=self._compressed_bytes_per_token(self.layer_offsets[layer]) * tokens_per_block,
                )
            ]
            for layer in self.sparse_layers
        }

    def get_layer_bytes_per_token(self, local_layer_idx: int, data_role: Any) -> int:
        """Bytes of a token in a layer. Compressed keys count for their share of a page."""
        compressed = self._compressed_bytes_per_token(local_layer_idx)
        if data_role == Role.INDEX_KEY:
            return compressed
        own: int = super().get_layer_bytes_per_token(local_layer_idx, data_role)
        return own + compressed if data_role == Role.ALL else own

    def _attention_cache_bytes_per_token(self) -> int:
        return sum(self.get_layer_bytes_per_token(layer, Role.ALL) for layer in range(self.num_local_layers))

    @classmethod
    def get_cache_size_per_token(
        cls, model_config: Any, mapping: Any, *, tokens_per_block: int = 32, **kwargs: Any
    ) -> tuple[int, int]:
        """Bytes of a token in all layers, and bytes that do not depend on tokens, before a manager is made."""
        slope, fixed = super().get_cache_size_per_token(
            model_config, mapping, tokens_per_block=tokens_per_block, **kwargs
        )
        config = add_hybrid_fields(model_config.pretrained_config)
        layout = PageLayout.of(config.sparse_config, tokens_per_block)
        key_bytes = config.num_key_value_heads * config.head_dim * model_config.pretrained_config.torch_dtype.itemsize
        layers = model_config.pretrained_config.hybrid_override_pattern.count("*")
        return slope + layers * layout.rows * key_bytes // tokens_per_block, fixed

    def prepare_resources(self, scheduled_batch: Any) -> None:
        """Remember how long the prompts of a batch are, then prepare it as the hybrid manager does."""
        for request in scheduled_batch.context_requests:
            self._prompt_lengths[request.py_request_id] = request.prompt_len
        super().prepare_resources(scheduled_batch)

    def free_resources(self, request: Any, pin_on_release: bool = False) -> None:
        """Forget a request, and free its caches as the hybrid manager does."""
        self._prompt_lengths.pop(request.py_request_id, None)
        super().free_resources(request, pin_on_release)

    def prompt_length(self, request_id: int) -> int:
        """Tokens of the whole prompt of a request. 0 for one that is only there to warm up."""
        return self._prompt_lengths.get(request_id, 0)

    def page_slots(self, request_ids: Sequence[int]) -> list[list[int]]:
        """Slots of the pages of each request, which all sparse layers share."""
        slots: list[list[int]] = self.get_batch_cache_indices(
            list(request_ids), layer_idx=self.sparse_layers[0], raw_indices=True
        )
        return slots

    def sparse_pool(self, layer: int) -> SparsePool:
        """The pages of a sparse layer."""
        keys_values = self.get_buffers(layer, kv_layout="HND")
        _, _, heads, page_tokens, head_dim = keys_values.shape
        rows = self.layout.rows
        by_token = self.get_index_k_buffer(
            layer, num_heads=1, head_dim=rows * heads * head_dim // page_tokens, dtype=self.dtype, kv_layout="NHD"
        )
        return SparsePool(
            keys_values=keys_values,
            compressed=by_token.view(len(by_token), rows, heads, head_dim),
            page_scale=self.get_layer_page_index_scale(layer) // 2,
        )


def install_cache_manager() -> None:
    """Have TensorRT-LLM make a `SalaCacheManager` for models of this type.

    It has no place to register a manager of a model that it does not hold, so the function that chooses one is wrapped.
    Other models get what it chooses.
    """
    chosen_by_default = _util.get_kv_cache_manager_cls

    @functools.wraps(chosen_by_default)
    def get_kv_cache_manager_cls(model_config: Any, *args: Any, **kwargs: Any) -> type:
        found: type = chosen_by_default(model_config, *args, **kwargs)
        if model_config.pretrained_config.model_type != MODEL_TYPE:
            return found
        if found is not MambaHybridCacheManagerV2:
            raise UnsupportedError(
                f"TensorRT-LLM would keep the caches in a {found.__name__}: set "
                "kv_cache_config.use_kv_cache_manager_v2 to true, and no environment variable that chooses another"
            )
        return SalaCacheManager.for_model(add_hybrid_fields(model_config.pretrained_config))

    _util.get_kv_cache_manager_cls = get_kv_cache_manager_cls
