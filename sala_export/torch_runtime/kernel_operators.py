"""Runs the operators as Triton kernels on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from ..checkpoint.config import Mixer, SalaConfig
from ..model.half_precision import stream_scale
from ..model.layers import Cache, DecoderLayer, RMSNorm
from ..model.mixers import MIXERS
from ..ops.common.triton_interpreter import gpu_arithmetic
from ..ops.common.triton_run import bind_kernels, require_launchable, served_architecture
from ..ops.kernel_sets import KERNEL_SETS
from ..specs import Precision, TensorSpec


class KernelOperators:
    """Launches operators on the current stream. Allocates nothing, waits for nothing, reads no position on the host."""

    def __init__(self, config: SalaConfig, precision: Precision, device: torch.device) -> None:
        """Raises: UnsupportedError if the kernels do not serve this GPU, or a model of these sizes and type on it."""
        self._config = config
        self._precision = precision
        self._interpreted = device.type == "cpu"
        sm = served_architecture(device)
        for mixer in dict.fromkeys(config.mixer_types):
            contract, attributes = MIXERS[mixer].contract, MIXERS[mixer].attributes(config)
            activation = getattr(torch, precision.dtype)
            require_launchable(contract, KERNEL_SETS[contract.name], attributes, activation, device, sm)

    def workspaces(self, mixer: Mixer, tokens: int, batch: int, capacity: int) -> tuple[TensorSpec, ...]:
        kind = MIXERS[mixer]
        sizes = {**kind.sizes(self._config), "B": batch, "T": tokens, "C": capacity}
        return KERNEL_SETS[kind.contract.name].workspace_specs(sizes, self._precision.dtype)

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        mixer, contract = layer.self_attn, layer.self_attn.kind.contract
        inputs = mixer.operator_inputs(buffers[mixer.kind.packed.name], cache, buffers)
        return bind_kernels(contract, KERNEL_SETS[contract.name], inputs, mixer.attributes, given=buffers).run

    def norm(self, norm: RMSNorm, hidden: Tensor, out: Tensor) -> None:
        self._add_norm(norm, hidden, out, 0.0, adds=False)

    def add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float) -> None:
        self._add_norm(norm, hidden, delta, scale, adds=True)

    def _add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float, *, adds: bool) -> None:
        from .elementwise_kernels import add_norm_kernel, norm_options

        rows, width = hidden.shape
        eps = norm.eps * stream_scale(hidden.dtype) ** 2
        with self._arithmetic():
            add_norm_kernel[(rows,)](hidden, delta, norm.weight, scale, eps, ADDS=adds, **norm_options(width))

    def gated_product(self, gate_up: Tensor) -> Tensor:
        from .elementwise_kernels import gate_options, gated_product_kernel

        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        options = gate_options(width)
        grid = (rows, triton.cdiv(width, options["BLOCK_I"]))
        with self._arithmetic():
            gated_product_kernel[grid](gate_up, stream_scale(gate_up.dtype), **options)
        return gate_up[:, :width]

    def _arithmetic(self) -> AbstractContextManager[None]:
        return gpu_arithmetic() if self._interpreted else nullcontext()
