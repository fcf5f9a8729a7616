"""MiniCPM-SALA as an `nn.Module`: `forward` for whole contexts, and the cached `step` of runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.config import SalaConfig
from ..checkpoint.reader import Checkpoint
from ..specs import DType
from .emulation import emulate
from .half_precision import stream_scale
from .layers import Cache, DecoderLayer, Linear, RMSNorm, StepInputs
from .rope import inv_freq_tensor, rope_cos_sin
from .signature import cache_sizes, signature


class SalaModel(nn.Module):
    """Embedding, decoder layers and final norm. Parameters have their names in the checkpoint, below `model.`."""

    def __init__(self, config: SalaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, mixer) for mixer in config.mixer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.scale_emb = config.scale_emb

    def forward(
        self, input_ids: Tensor, step: StepInputs, caches: Sequence[Cache], logit_rows: Tensor | None
    ) -> tuple[Tensor, list[Cache]]:
        """Compute normed hidden rows [R, H] of the tokens that `logit_rows` names, or [B, T, H] of all if it is None.

        Returns: these rows, and the caches by layer.
        """
        embedded = self.embed_tokens(input_ids)
        hidden = embedded * (self.scale_emb * stream_scale(embedded.dtype))
        updated: list[Cache] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden, cache = layer(hidden, cache, step)
            updated.append(cache)
        wanted = hidden if logit_rows is None else hidden.flatten(0, 1).index_select(0, logit_rows)
        return self.norm(wanted), updated


class SalaForCausalLM(nn.Module):
    """The language model.

    `forward` takes a whole context. `step` takes one chunk and the caches of everything before it. Any split of a
    context into chunks gives the same logits, to rounding, as long as `context_length` is the same.
    """

    def __init__(self, config: SalaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = SalaModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> SalaForCausalLM:
        """Load a checkpoint directory. `dtype` defaults to the type of its projections.

        Products of a quantised checkpoint are emulated: they round as an engine's do, and take longer.

        Raises: ConfigError, UnsupportedError or CheckpointError naming the file and the field or tensor.
        """
        checkpoint = Checkpoint.open(Path(path))
        with torch.device("meta"):
            model = cls(checkpoint.config)
        dtype = dtype or getattr(torch, checkpoint.dtype)
        weights = {name: checkpoint.tensor(name).to(device=device, dtype=dtype) for name in checkpoint.locations}
        if checkpoint.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        emulate(model, checkpoint.quantized, device)
        checkpoint.require_unchanged()
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self.lm_head.weight.dtype

    def new_caches(self, batch: int, capacity: int) -> list[Cache]:
        """Make empty caches by layer for `capacity` tokens, in the layout of `signature.py`."""
        device = self.lm_head.weight.device
        sizes = cache_sizes(self.config, capacity, batch)
        caches: list[list[Tensor]] = [[] for _ in self.config.mixer_types]
        for entry in signature(self.config, DType(str(self.dtype).removeprefix("torch."))).caches:
            dtype = getattr(torch, entry.past.dtype.value)
            caches[entry.layer].append(torch.zeros(entry.past.bound(sizes), dtype=dtype, device=device))
        return [tuple(cache) for cache in caches]

    def rope(self, past_length: Tensor, tokens: int) -> Tensor:
        """Compute `rope_cos_sin` of the next `tokens` positions, fp32 [B, T, head_dim]."""
        inv_freq = inv_freq_tensor(self.config.rope_theta, self.config.head_dim).to(past_length.device)
        positions = past_length[:, None] + torch.arange(tokens, device=past_length.device)
        return rope_cos_sin(positions, inv_freq)

    def step(
        self,
        input_ids: Tensor,
        past_length: Tensor,
        context_length: Tensor,
        rope_cos_sin: Tensor,
        logit_rows: Tensor,
        caches: Sequence[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        """Run one chunk.

        Args: input_ids int64 [B, T]; past_length, context_length int32 [B]; rope_cos_sin fp32 [B, T, head_dim];
        logit_rows int32 [R], where row b * T + t is token t of sequence b; caches by layer, whose sparse tensors are
        updated in place.
        Returns: fp32 logits [R, V] of these rows; the caches after the chunk.
        Raises: ShapeError if shapes or lengths break an operator's contract.
        """
        return self._run(input_ids, past_length, context_length, rope_cos_sin, caches, logit_rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute fp32 logits [B, T, V] of a whole context, input_ids int64 [B, T]."""
        batch, tokens = input_ids.shape
        past_length = torch.zeros(batch, dtype=torch.int32, device=input_ids.device)
        rope = self.rope(past_length, tokens)
        caches = self.new_caches(batch, tokens)
        logits, _ = self._run(input_ids, past_length, past_length + tokens, rope, caches, None)
        return logits

    def _run(
        self,
        input_ids: Tensor,
        past_length: Tensor,
        context_length: Tensor,
        rope_cos_sin: Tensor,
        caches: Sequence[Cache],
        logit_rows: Tensor | None,
    ) -> tuple[Tensor, list[Cache]]:
        step = StepInputs(past_length=past_length, context_length=context_length, rope_cos_sin=rope_cos_sin)
        hidden, updated = self.model(input_ids, step, caches, logit_rows)
        logits: Tensor = self.lm_head(hidden / self.config.logit_divisor)
        return logits.to(torch.float32), updated
