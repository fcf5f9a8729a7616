"""Checks before a build that the shipped kernels serve a model on a GPU, and tells what scratch they need."""

from __future__ import annotations

from ..checkpoint.config import Mixer, SalaConfig
from ..errors import UnsupportedError
from ..model.attributes import operator_attributes
from ..model.signature import cache_sizes
from ..ops.common.launch import unsupported_reason
from ..ops.common.targets import require_architecture
from ..ops.registry import INFLLMV2_ATTENTION, LIGHTNING_ATTENTION
from ..specs import ComputeCapability, Precision

_CONTRACTS = {Mixer.LIGHTNING: LIGHTNING_ATTENTION, Mixer.SPARSE: INFLLMV2_ATTENTION}


def require_kernels(config: SalaConfig, precision: Precision, compute_capability: ComputeCapability) -> None:
    """Refuse a GPU or a model that no shipped kernel serves. You can still export its graph.

    Raises: UnsupportedError naming the architecture, or the operator and the size or type at fault.
    """
    require_architecture(compute_capability)
    # Loaded here because it imports Triton, which takes a second.
    from ..ops.kernel_sets import KERNEL_SETS

    for mixer, contract in _CONTRACTS.items():
        if mixer not in config.mixer_types:
            continue
        attributes = operator_attributes(config, mixer)
        reason = unsupported_reason(KERNEL_SETS[contract.name], attributes, precision.dtype)
        if reason:
            raise UnsupportedError(
                f"{contract.onnx_type}: {reason}; `sala-export export` still writes the ONNX graph of such a model"
            )


def operator_workspaces(
    config: SalaConfig, precision: Precision, *, batch: int, tokens: int, capacity: int
) -> dict[str, int]:
    """Scratch bytes of one call of each operator of a model, by ONNX type.

    Args: `batch` sequences have caches for `capacity` tokens. A chunk has `tokens` tokens.
    """
    from ..ops.kernel_sets import KERNEL_SETS

    sizes = cache_sizes(config, capacity, batch)
    dims = {"B": batch, "T": tokens, "C": capacity, "C1": sizes["capacity_k1"], "C2": sizes["capacity_k2"]}
    found = {}
    for mixer, contract in _CONTRACTS.items():
        if mixer not in config.mixer_types:
            continue
        kernels = KERNEL_SETS[contract.name]
        attributes = {k: v for k, v in operator_attributes(config, mixer).items() if isinstance(v, int)}
        specs = kernels.workspace_specs({**dims, **attributes}, precision.dtype)
        found[contract.onnx_type] = sum(spec.size_bytes({}) for spec in specs)
    return found
