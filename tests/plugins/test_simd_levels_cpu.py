"""The kernels of one SIMD level must stay within it: a machine without AVX-512 may not meet its code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from support.cpu_operators import (
    PRODUCT_LEVELS,
    REPOSITORY,
    SIMD_LEVELS,
    build_directory,
    library,
    runnable_product_levels,
    runnable_simd_levels,
)

_FLAGS = {
    "baseline": set(),
    "avx2": {"avx2", "fma"},
    "avx2_vnni": {"avx2", "fma", "avx_vnni"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16"},
    "amx": {"avx512f", "avx512vbmi", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
}
"""What Linux calls the instructions of each level."""


def test_kernel_objects_share_no_definition_with_other_levels() -> None:
    """A weak definition, as of an inline function of the standard library, would be merged with the other levels'."""
    sources = len(list((REPOSITORY / "plugins").glob("*/*_simd.cc")))
    folders = sorted((build_directory() / "CMakeFiles").glob("sala_cpu_*.dir"))
    assert {folder.name[len("sala_cpu_") : -len(".dir")] for folder in folders} >= set(runnable_simd_levels())
    for folder in folders:
        level = folder.name[len("sala_cpu_") : -len(".dir")]
        objects = sorted(folder.rglob("*.o"))
        assert len(objects) == sources if level in SIMD_LEVELS else objects
        for path in objects:
            found = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True)
            lines = found.stdout.splitlines()
            assert not [line for line in lines if line.split()[1] in "VWu"]
            exported = [line for line in lines if line.split()[1].isupper()]
            assert exported
            assert all(f"::{level}::" in line for line in exported)


def test_levels_are_those_that_linux_says_of_the_processor() -> None:
    """Other processors than x86-64 have no such flags, and one level here."""
    found = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    assert runnable_product_levels() == tuple(level for level in PRODUCT_LEVELS if _FLAGS[level] <= flags)


def test_library_exports_its_entry_points_alone() -> None:
    lines = subprocess.run(["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in lines.splitlines()}
    assert names == {"RegisterCustomOps", "sala_ort_set_simd_level", "sala_ort_simd_level"}
