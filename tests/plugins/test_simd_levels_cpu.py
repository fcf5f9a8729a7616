"""The kernels of one SIMD level must stay within it: a machine without AVX-512 may not meet its code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.cpu_operators import REPOSITORY, SIMD_LEVELS, build_directory, library, runnable_simd_levels


@pytest.mark.parametrize("level", runnable_simd_levels())
def test_kernel_objects_share_no_definition_with_other_levels(level: str) -> None:
    """A weak definition, as of an inline function of the standard library, would be merged with the other levels'."""
    objects = sorted((build_directory() / "CMakeFiles" / f"sala_cpu_{level}.dir").rglob("*.o"))
    assert len(objects) == len(list((REPOSITORY / "plugins").glob("*/*_simd.cc")))
    for path in objects:
        lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        shared = [line for line in lines.splitlines() if line.split()[1] in "VWu"]
        assert not shared
        exported = [line for line in lines.splitlines() if line.split()[1].isupper()]
        assert exported
        assert all(f"::{level}::" in line for line in exported)


def test_levels_are_in_rising_order_and_begin_with_the_baseline() -> None:
    levels = runnable_simd_levels()
    assert levels == SIMD_LEVELS[: len(levels)]


def test_best_level_is_what_linux_says_of_the_processor() -> None:
    """Other processors than x86-64 have no such flags, and one level."""
    found = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    needed = (
        set(),
        {"avx2", "fma"},
        {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        {"avx512vbmi", "avx512_vnni", "avx512_bf16"},
    )
    count = next((i for i, names in enumerate(needed) if not names <= flags), len(needed))
    assert runnable_simd_levels() == SIMD_LEVELS[:count]


def test_library_exports_its_entry_points_alone() -> None:
    lines = subprocess.run(["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in lines.splitlines()}
    assert names == {"RegisterCustomOps", "sala_ort_set_simd_level", "sala_ort_simd_level"}
