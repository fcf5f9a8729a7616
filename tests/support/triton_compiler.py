"""What Triton's own launcher would compile for a GPU, without one, in a process of its own.

How Python passes a kernel its arguments is not how ahead-of-time compilation does, so what comes of a call is another
thing to prove. Triton asks a driver which GPU there is: here one that only has a name.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor


class _NamedGpu:
    """As much of a driver as compilation needs."""

    def __init__(self, sm: int) -> None:
        self._sm = sm

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._sm, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_decode_step(sm: int) -> dict[str, int]:
    """Bytes of shared memory by kernel of all that a decode step of the published model launches, in bfloat16."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_compile, sm).result()


def _compile(sm: int) -> dict[str, int]:
    from triton.runtime.driver import driver

    from sala_export.checkpoint.presets import PRESETS
    from sala_export.ops.common.triton_run import bind_kernels
    from sala_export.ops.kernel_sets import KERNEL_SETS
    from sala_export.ops.registry import INFLLMV2_ATTENTION, LIGHTNING_ATTENTION

    driver.set_active(_NamedGpu(sm))
    config = PRESETS["9b"].config
    shared = _compile_elementwise(config.hidden_size, config.intermediate_size)
    for contract, inputs, attributes in (
        (LIGHTNING_ATTENTION, *_lightning_call(config)),
        (INFLLMV2_ATTENTION, *_sparse_call(config)),
    ):
        call = bind_kernels(contract, KERNEL_SETS[contract.name], inputs, attributes, sm=sm)
        for bound in call.launches:
            # The architecture is the driver's here, not an option of the call.
            options = {name: value for name, value in bound.options.items() if name != "arch"}
            kernel = bound.launch.kernel.warmup(**bound.arguments, **options, grid=bound.grid)  # type: ignore[attr-defined]
            shared[bound.launch.name] = kernel.metadata.shared
    return shared


def _compile_elementwise(hidden: int, intermediate: int) -> dict[str, int]:
    from sala_export.torch_runtime.elementwise_kernels import add_norm_kernel, gated_product_kernel

    rows, weight = _meta((1, hidden)), _meta((hidden,))
    options = {"ADDS": True, "BLOCK_H": hidden, "num_warps": 8, "grid": (1,)}
    norm = add_norm_kernel.warmup(rows, rows, weight, hidden, 0.25, 1e-6, **options)
    gate_up = _meta((1, 2 * intermediate))
    gated = gated_product_kernel.warmup(gate_up, intermediate, 1.0, BLOCK_I=2048, num_warps=8, grid=(1, 8))
    return {"add_norm_kernel": norm.metadata.shared, "gated_product_kernel": gated.metadata.shared}


def _lightning_call(config: object) -> tuple[list[Tensor], dict[str, int | float]]:
    from sala_export.checkpoint.config import Mixer
    from sala_export.model.attributes import operator_attributes

    attributes = operator_attributes(config, Mixer.LIGHTNING)  # type: ignore[arg-type]
    heads, dim = attributes["num_heads"], attributes["head_dim"]
    norms = [_meta((dim,)), _meta((dim,)), _meta((heads * dim,))]
    wide = [_meta((1, 1, dim), torch.float32), _meta((1, heads, dim, dim), torch.float32)]
    return [_meta((1, 1, 4 * heads * dim)), *norms, *wide], attributes


def _sparse_call(config: object, capacity: int = 65664) -> tuple[list[Tensor], dict[str, int | float]]:
    from sala_export.checkpoint.config import Mixer
    from sala_export.model.attributes import operator_attributes
    from sala_export.model.signature import cache_sizes

    attributes = operator_attributes(config, Mixer.SPARSE)  # type: ignore[arg-type]
    heads, kv_heads, dim = (attributes[name] for name in ("num_heads", "num_kv_heads", "head_dim"))
    sizes = cache_sizes(config, capacity)  # type: ignore[arg-type]
    rows = (capacity, capacity, sizes["capacity_k1"], sizes["capacity_k2"])
    lengths = [_meta((1,), torch.int32)] * 2
    caches = [_meta((1, kv_heads, count, dim)) for count in rows]
    return [_meta((1, 1, 2 * (heads + kv_heads) * dim)), *lengths, *caches], attributes


def _meta(shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
