"""The GPU architectures that kernels are compiled for ahead of time, and which of them serves a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedError
from ...specs import ComputeCapability


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What cubins of one architecture may use, and where they run."""

    shared_limit_bytes: int
    """Shared memory that a block may have (CUDA C++ Programming Guide, "Technical Specifications per Compute
    Capability": the per-block maximum with opt-in)."""
    is_arch_specific: bool
    """Triton compiles for `sm_<n>a`: the code runs on exactly this architecture."""


AOT_ARCHITECTURES: Mapping[int, Architecture] = {
    86: Architecture(shared_limit_bytes=101376, is_arch_specific=False),
    89: Architecture(shared_limit_bytes=101376, is_arch_specific=False),
    90: Architecture(shared_limit_bytes=232448, is_arch_specific=True),
    120: Architecture(shared_limit_bytes=101376, is_arch_specific=True),
}
"""Architectures that cubins are made for, by 10 * major + minor."""


def serving_architecture(capability: ComputeCapability) -> int | None:
    """The architecture whose cubins a GPU of this compute capability runs; None if there is none.

    Its own, else the nearest lower one of the same major version, as `find_image` of the plugins' launcher takes.
    """
    wanted = 10 * capability.major + capability.minor
    return max(
        (
            sm
            for sm, architecture in AOT_ARCHITECTURES.items()
            if sm == wanted or (not architecture.is_arch_specific and sm // 10 == capability.major and sm < wanted)
        ),
        default=None,
    )


def require_architecture(capability: ComputeCapability) -> int:
    """The architecture whose cubins a GPU of this compute capability runs.

    Raises: UnsupportedError naming those that there are, if it is none of them.
    """
    found = serving_architecture(capability)
    if found is None:
        served = ", ".join(f"SM{sm}" for sm in AOT_ARCHITECTURES)
        raise UnsupportedError(f"no kernels for {capability.sm}, they exist for {served}")
    return found
