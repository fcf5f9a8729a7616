"""What `benchmarks/kernels.py` measures: calls of both operators at the published sizes, and their inputs.

B batch, T tokens of a call, H heads, G key heads, D head dim, C capacity of the caches in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sala_export.model.rope import inv_freq_tensor, rope_cos_sin
from sala_export.ops.common.contract import ACTIVATION, Contract
from sala_export.ops.common.expr import evaluate
from sala_export.ops.common.launch import KernelSet
from sala_export.ops.infllmv2_attention.schema import PUBLISHED as SPARSE_SIZES
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.lightning_attention.schema import PUBLISHED as LIGHTNING_SIZES
from sala_export.ops.registry import CONTRACTS
from sala_export.specs import DType, format_tokens

LIGHTNING = "lightning_attention"
SPARSE = "infllmv2_attention"
CHUNK = 8192
DENSE_PROMPT = 8064
"""Tokens: whole tiles, and fewer than dense_len."""
CONTEXTS = (32 << 10, 128 << 10, 1 << 20)
STRETCH = 64
"""Tokens whose queries may be alike."""
LIKENESS = {70: 0.95, 90: 0.9925}
"""By per cent of the chosen blocks that neighbours share after 128K: four tokens choose 118 or 81 blocks together, and
not 248. Found with the reference on 64 tokens; queries that are not alike share 5 %."""

# topk 32 and the 32 blocks of the window: as many as in the figures that the CUDA reference publishes.
SIXTY_FOUR_BLOCKS: Mapping[str, int | float] = {**SPARSE_SIZES, "topk": 32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Calls of one operator at one place of a context."""

    name: str
    operator: str
    """`LIGHTNING` or `SPARSE`, or another one that is compiled and not measured."""
    tokens: int
    past_length: int = 0
    batch: int = 1
    calls: int = 1
    """Calls in a row that count as one: a prompt in chunks, each on the same inputs."""
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    """Dimensions beside those of tokens: the inputs and outputs of a product."""
    likeness: float = 0.0
    """Share of a query's variance that it has in common with those of its stretch of `STRETCH` tokens."""

    @property
    def contract(self) -> Contract:
        return next(contract for contract in CONTRACTS if contract.name == self.operator)

    @property
    def kernel_set(self) -> KernelSet:
        return KERNEL_SETS[self.operator]

    @property
    def is_decode(self) -> bool:
        return self.tokens == 1

    @property
    def context(self) -> int:
        """Tokens after the call."""
        return self.past_length + self.tokens

    @property
    def sizes(self) -> dict[str, int]:
        """Dimensions and integer attributes by name."""
        names = {name: value for name, value in self.attributes.items() if isinstance(value, int)}
        names |= {"B": self.batch, "T": self.tokens, **self.widths}
        if self.operator == SPARSE:
            size, stride = names["kernel_size"], names["kernel_stride"]
            names["C"] = self.context
            names["C1"], names["C2"] = (max(0, (self.context - f * size) // (f * stride) + 1) for f in (1, 4))
        return names

    def bytes(self, dtype: DType) -> int:
        """Device memory of inputs, outputs and workspaces."""
        names = {**self.kernel_set.constants, **self.sizes}
        updating = [output for output in self.contract.outputs if output.updates is None]
        total = 0
        for tensor in (*self.contract.inputs, *updating, *self.kernel_set.workspaces):
            element = dtype if tensor.dtype == ACTIVATION else DType(tensor.dtype)
            total += element.bytes * math.prod(evaluate(extent, names) for extent in tensor.shape)
        return total


def published_cases(*, quick: bool = False) -> tuple[Case, ...]:
    """All that is measured; the short list stops at a context of 32K and leaves out whole prompts."""
    contexts = CONTEXTS[:1] if quick else CONTEXTS
    lightning: dict[str, Any] = {"operator": LIGHTNING, "attributes": LIGHTNING_SIZES}
    sparse: dict[str, Any] = {"operator": SPARSE, "attributes": SPARSE_SIZES}
    cases = [
        Case(name="Lightning, chunk of 8K", tokens=CHUNK, **lightning),
        *(
            Case(name=f"Lightning, {format_tokens(n)} in chunks of 8K", tokens=CHUNK, calls=n // CHUNK, **lightning)
            for n in contexts
        ),
        Case(name="Lightning, one token", tokens=1, **lightning),
        Case(name="InfLLM-v2, dense prompt of 8064", tokens=DENSE_PROMPT, **sparse),
        *(
            Case(name=f"InfLLM-v2, last 8K of {format_tokens(n)}", tokens=CHUNK, past_length=n - CHUNK, **sparse)
            for n in contexts
        ),
        *(
            Case(
                name=f"InfLLM-v2, last 8K of 128K, neighbours share {percent} %",
                tokens=CHUNK,
                past_length=(128 << 10) - CHUNK,
                likeness=likeness,
                **sparse,
            )
            for percent, likeness in ({} if quick else LIKENESS).items()
        ),
        *(
            Case(name=f"InfLLM-v2, one token after {format_tokens(n)}", tokens=1, past_length=n - 1, **sparse)
            for n in contexts
        ),
    ]
    if not quick:
        cases += [
            Case(name="InfLLM-v2, 128K at once", tokens=128 << 10, **sparse),
            Case(name="InfLLM-v2, 128K x 2 at once", tokens=128 << 10, batch=2, **sparse),
            Case(
                name="InfLLM-v2, 128K x 2 at once, 64 blocks",
                tokens=128 << 10,
                batch=2,
                operator=SPARSE,
                attributes=SIXTY_FOUR_BLOCKS,
            ),
        ]
    return tuple(cases)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Inputs in the order of the contract: random, with caches that hold what the operator would have left there.

    Keys share a direction with their neighbours, so that blocks score differently.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    make = _lightning_inputs if case.operator == LIGHTNING else _sparse_inputs
    return make(case, normal, device)


def _lightning_inputs(case: Case, normal: Any, device: torch.device) -> list[Tensor]:
    heads, dim = int(case.attributes["num_heads"]), int(case.attributes["head_dim"])
    positions = torch.arange(case.past_length, case.context)
    rope = rope_cos_sin(positions[None], inv_freq_tensor(10000.0, dim)).expand(case.batch, -1, -1)
    return [
        normal(case.batch, case.tokens, 4 * heads * dim),
        *(1 + 0.1 * normal(width) for width in (dim, dim, heads * dim)),
        rope.contiguous().to(device),
        normal(case.batch, heads, dim, dim).float(),
    ]


def _sparse_inputs(case: Case, normal: Any, device: torch.device) -> list[Tensor]:
    names = case.sizes
    heads, groups, dim = names["num_heads"], names["num_kv_heads"], names["head_dim"]
    qkvg = normal(case.batch, case.tokens, 2 * (heads + groups) * dim)
    if case.likeness:
        common = normal(case.batch, -(-case.tokens // STRETCH), heads * dim).repeat_interleave(STRETCH, dim=1)
        queries = qkvg[..., : heads * dim]
        queries.mul_(math.sqrt(1 - case.likeness)).add_(common[:, : case.tokens], alpha=math.sqrt(case.likeness))
    topics = normal(case.batch, groups, -(-case.context // 24), dim).mul_(2).repeat_interleave(24, dim=2)
    k_cache = normal(case.batch, groups, case.context, dim).add_(topics[:, :, : case.context])
    v_cache = normal(case.batch, groups, case.context, dim)
    for cache, first in ((k_cache, heads), (v_cache, heads + groups)):
        new = cache[:, :, case.past_length :].transpose(1, 2).reshape(case.batch, case.tokens, groups * dim)
        qkvg[..., first * dim : (first + groups) * dim] = new
    compressed = [
        _means(k_cache, factor * names["kernel_size"], factor * names["kernel_stride"], rows)
        for factor, rows in ((1, names["C1"]), (4, names["C2"]))
    ]
    lengths = [torch.full((case.batch,), value, dtype=torch.int32, device=device) for value in (names["C"], 0)]
    lengths[1] += case.past_length
    return [qkvg, lengths[1], lengths[0], k_cache, v_cache, *compressed]


def _means(keys: Tensor, size: int, stride: int, rows: int) -> Tensor:
    """Means [B, G, rows, D] of `size` keys every `stride` keys, summed in fp32; one key head at a time."""
    means = keys.new_empty(*keys.shape[:2], rows, keys.shape[3])
    if rows:
        for b in range(keys.shape[0]):
            for g in range(keys.shape[1]):
                pooled = torch.nn.functional.avg_pool1d(keys[b, g].float().t()[None], size, stride)
                means[b, g] = pooled[0].t()
    return means
