"""The CPU operators compiled for 64-bit Arm, on processors of every SIMD level that QEMU emulates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.documents import ROOT
from support.native_cpu import build_programs, run

_EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static") or ""
_COMPILER = shutil.which("aarch64-linux-gnu-g++")

pytestmark = pytest.mark.skipif(
    not _EMULATOR or _COMPILER is None, reason="aarch64 can not be compiled for and emulated"
)

LEVELS = {
    "cortex-a53": ["baseline"],
    "cortex-a76": ["baseline", "neon_dot"],
    "max": ["baseline", "neon_dot", "neon_matrix"],
}
"""The levels that a processor of each name has."""

_OPTIONS = (f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/Aarch64Toolchain.cmake", "-DCMAKE_EXE_LINKER_FLAGS=-static")


def test_products_of_every_format_at_every_level(tmp_path: Path) -> None:
    build_programs(tmp_path, ["linear_levels"], *_OPTIONS, "-DSALA_CPU_PRODUCTS_ONLY=ON")
    for processor, levels in LEVELS.items():
        *found, products = run(_EMULATOR, "-cpu", processor, tmp_path / "linear_levels").split()
        assert found == levels
        assert int(products) > 100_000


@pytest.mark.release
def test_all_operators_with_random_sizes(tmp_path: Path) -> None:
    """Takes some minutes, most of them in the emulator."""
    build_programs(tmp_path, ["cpu_stress"], *_OPTIONS)
    calls = run(_EMULATOR, "-cpu", "max", tmp_path / "cpu_stress").split()
    assert calls == ["600", "calls"]
