"""The GPU architectures that there are kernels for, and which of them serves a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    is_arch_specific: bool = False
    """Triton compiles for `sm_<n>a`: the code runs on exactly this architecture."""
    is_tegra: bool = False
    """The GPU of a Tegra: NVIDIA promises neither that it runs code of other architectures, nor that they run its."""
    has_dependent_launches: bool = False
    """A launch can begin before the one before it has ended (programmatic dependent launch)."""

    @property
    def runs_alone(self) -> bool:
        """Code of this architecture runs on no other."""
        return self.is_arch_specific or self.is_tegra

    @property
    def shared_limit_bytes(self) -> int:
        """Shared memory that one block may have, with opt-in."""
        return self.shared_bytes - SHARED_RESERVED_PER_BLOCK


ARCHITECTURES: Mapping[int, Architecture] = {
    86: Architecture(warps=48, blocks=16, shared_bytes=100 << 10),
    87: Architecture(warps=48, blocks=16, shared_bytes=164 << 10, is_tegra=True),
    89: Architecture(warps=48, blocks=24, shared_bytes=100 << 10),
    90: Architecture(warps=64, blocks=32, shared_bytes=228 << 10, is_arch_specific=True, has_dependent_launches=True),
    110: Architecture(warps=48, blocks=24, shared_bytes=228 << 10, is_arch_specific=True, has_dependent_launches=True),
    120: Architecture(warps=48, blocks=24, shared_bytes=100 << 10, is_arch_specific=True, has_dependent_launches=True),
    121: Architecture(warps=48, blocks=24, shared_bytes=100 << 10, is_arch_specific=True, has_dependent_launches=True),
}
"""Architectures that the kernels have tiles for, by 10 * major + minor."""

AOT_ARCHITECTURES = (86, 89, 90, 120)
"""Those of them that a plugin library has cubins for, unless it was built for others (`SALA_ARCHITECTURES`)."""


def serving_architecture(capability: ComputeCapability, among: Collection[int] = tuple(ARCHITECTURES)) -> int | None:
    """The architecture whose kernels a GPU of this compute capability runs; None if there is none.

    Its own, else the nearest lower one of the same major version, as `find_image` of the plugins' launcher takes.
    Args: `among` are the architectures that there are kernels of.
    """
    wanted = 10 * capability.major + capability.minor
    return max((sm for sm in among if sm == wanted or _runs_on_later(sm, wanted)), default=None)


def _runs_on_later(sm: int, wanted: int) -> bool:
    """True if GPUs of `wanted` run what was compiled for `sm`, an earlier architecture of their generation."""
    if ARCHITECTURES[sm].runs_alone or (wanted in ARCHITECTURES and ARCHITECTURES[wanted].is_tegra):
        return False
    return sm // 10 == wanted // 10 and sm < wanted


def installation_advice(wanted: int, there: Collection[int]) -> str:
    """What to type so that kernels of an architecture are installed beside those that are there."""
    names = ",".join(str(sm) for sm in sorted({wanted, *there}))
    return f"install with scripts/install.sh --architectures {names} (docs/gpus.md)"


def require_architecture(capability: ComputeCapability) -> int:
    """The architecture whose kernels a GPU of this compute capability runs.

    Raises: UnsupportedError naming those that there are, if it is none of them.
    """
    found = serving_architecture(capability)
    if found is None:
        served = ", ".join(f"SM{sm}" for sm in ARCHITECTURES)
        raise UnsupportedError(f"no kernels for {capability.sm}, they exist for {served}")
    return found
