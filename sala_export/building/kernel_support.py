"""Checks before a build that the installed kernels serve a model on a GPU, and tells what scratch they need."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.config import SalaConfig
from ..errors import UnsupportedError
from ..kernel_report.shipped import shipped_architectures
from ..model.mixers import MIXERS
from ..model.signature import CAPACITY_K1, CAPACITY_K2, cache_sizes
from ..ops.common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..ops.common.launch import unsupported_reason
from ..ops.common.targets import installation_advice, require_architecture, serving_architecture
from ..specs import ComputeCapability, Precision


def require_kernels(
    config: SalaConfig, precision: Precision, compute_capability: ComputeCapability, library: Path
) -> None:
    """Refuse a GPU or a model that no kernel of the plugin library serves. You can still export its graph.

    Raises: UnsupportedError naming the architecture, or the operator and the size or type at fault. BuildError as
        `shipped_kernels`.
    """
    wanted, there = require_architecture(compute_capability), shipped_architectures(library)
    if serving_architecture(compute_capability, there) is None:
        served = ", ".join(f"SM{sm}" for sm in sorted(there))
        raise UnsupportedError(
            f"the installed kernels are for {served}, not for {compute_capability.sm}: "
            f"{installation_advice(wanted, there)}"
        )
    if precision is Precision.MXFP8 and require_architecture(compute_capability) not in BLOCK_SCALED_ARCHITECTURES:
        served = ", ".join(f"SM{sm}" for sm in BLOCK_SCALED_ARCHITECTURES)
        raise UnsupportedError(f"no kernels of {precision} for {compute_capability.sm}, they exist for {served}")
    # Loaded here because it imports Triton, which takes a second.
    from ..ops.kernel_sets import KERNEL_SETS

    for mixer, kind in MIXERS.items():
        if mixer not in config.mixer_types:
            continue
        reason = unsupported_reason(KERNEL_SETS[kind.contract.name], kind.attributes(config), precision.dtype)
        if reason:
            raise UnsupportedError(
                f"{kind.contract.onnx_type}: {reason}; `sala-export export` still writes the ONNX graph of such a model"
            )


def operator_workspaces(
    config: SalaConfig, precision: Precision, *, batch: int, tokens: int, capacity: int
) -> dict[str, int]:
    """Scratch bytes of one call of each operator of a model, by ONNX type.

    Args: `batch` sequences have caches for `capacity` tokens. A chunk has `tokens` tokens.
    """
    from ..ops.kernel_sets import KERNEL_SETS

    sizes = cache_sizes(config, capacity, batch)
    dims = {"B": batch, "T": tokens, "C": capacity, "C1": sizes[CAPACITY_K1], "C2": sizes[CAPACITY_K2]}
    found: dict[str, int] = {}
    for mixer in dict.fromkeys(config.mixer_types):
        contract = MIXERS[mixer].contract
        specs = KERNEL_SETS[contract.name].workspace_specs({**dims, **MIXERS[mixer].sizes(config)}, precision.dtype)
        # Mixers may share an operator.
        found[contract.onnx_type] = max(found.get(contract.onnx_type, 0), sum(spec.size_bytes({}) for spec in specs))
    return found
