"""The GPU architectures that kernels are compiled for ahead of time, and which of them serves a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedError
from ...specs import ComputeCapability

SHARED_RESERVED_PER_BLOCK = 1024
"""Bytes of shared memory that the system takes of each block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What cubins of one architecture may use, and where they run.

    The limits of a multiprocessor are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute
    Capability".
    """

    warps: int
    blocks: int
    shared_bytes: int
    is_arch_specific: bool
    """Triton compiles for `sm_<n>a`: the code runs on exactly this architecture."""
    has_dependent_launches: bool
    """A launch can begin before the one before it has ended (programmatic dependent launch)."""

    @property
    def shared_limit_bytes(self) -> int:
        """Shared memory that one block may have, with opt-in."""
        return self.shared_bytes - SHARED_RESERVED_PER_BLOCK


AOT_ARCHITECTURES: Mapping[int, Architecture] = {
    86: Architecture(warps=48, blocks=16, shared_bytes=100 << 10, is_arch_specific=False, has_dependent_launches=False),
    89: Architecture(warps=48, blocks=24, shared_bytes=100 << 10, is_arch_specific=False, has_dependent_launches=False),
    90: Architecture(warps=64, blocks=32, shared_bytes=228 << 10, is_arch_specific=True, has_dependent_launches=True),
    120: Architecture(warps=48, blocks=24, shared_bytes=100 << 10, is_arch_specific=True, has_dependent_launches=True),
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
