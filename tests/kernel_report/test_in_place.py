"""Which tiles threads hold copies of, by layout; whole kernels: tests/benchmarks/test_kernel_compilation.py."""

from __future__ import annotations

import pytest

from sala_export.errors import BuildError
from sala_export.kernel_report.in_place import accesses, racing_tiles

KERNEL = """\
#blocked = #ttg.blocked<{{sizePerThread = [1, 2], threadsPerWarp = [4, 8], warpsPerCTA = [2, 1], order = [1, 0]}}>
#mma = #ttg.nvidia_mma<{{versionMajor = 2, versionMinor = 0, warpsPerCTA = [2, 1], instrShape = [16, 8]}}>
#linear = #ttg.linear<{{register = [], lane = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], warp = [[0, 0]], block = []}}>
  tt.func public @kernel(%x_ptr: !tt.ptr<f32> {{tt.divisibility = 16 : i32}}, %y_ptr: !tt.ptr<f32>) attributes {{}} {{
    %0 = tt.splat %x_ptr : !tt.ptr<f32> -> tensor<{tile}x!tt.ptr<f32>, {layout}>
    %1:2 = scf.for %i = %c0 to %c4 step %c1 iter_args(%at = %0, %n = %c0) -> (tensor<{tile}x!tt.ptr<f32>, {layout}>) {{
      %2 = tt.load %at, %mask : tensor<{tile}x!tt.ptr<f32>, {layout}> loc(#loc1)
      %3 = tt.addptr %at, %2 : tensor<{tile}x!tt.ptr<f32>, {layout}>, tensor<{tile}xi32, {layout}>
      scf.yield %3, %n : tensor<{tile}x!tt.ptr<f32>, {layout}>, i32
    }}
    tt.store {stored}, %2 : tensor<{tile}x!tt.ptr<f32>, {layout}> loc(#loc2)
"""


@pytest.mark.parametrize(
    ("tile", "layout", "has_copies"),
    [
        # 8 x 8 threads with two elements each.
        ("8x16", "#blocked", False),
        ("16x64", "#blocked", False),
        ("4x16", "#blocked", True),
        ("8x8", "#blocked", True),
        # Threads beside each other, or below each other, hold the same element of a column or a row.
        ("8", "#ttg.slice<{dim = 1, parent = #blocked}>", True),
        ("16", "#ttg.slice<{dim = 0, parent = #blocked}>", True),
        ("32x8", "#mma", False),
        ("16x8", "#mma", True),
        ("8x4", "#linear", True),
    ],
)
def test_copies_follow_from_the_layout(tile: str, layout: str, has_copies: bool) -> None:
    text = KERNEL.format(tile=tile, layout=layout, stored="%1#0")
    assert [(access.is_store, access.has_copies) for access in accesses(text)] == [
        (False, has_copies),
        (True, has_copies),
    ]
    assert racing_tiles(text) == ((f"x_ptr: load of {tile}", f"x_ptr: store of {tile}") if has_copies else ())


def test_tile_that_is_only_stored_may_have_copies() -> None:
    stored = "%y_ptr"
    assert racing_tiles(KERNEL.format(tile="4x16", layout="#blocked", stored=stored)) == ()


SECOND_LOOP = """\
    scf.for %at = %c0 to %c4 step %c1 : i32 {
      %4 = tt.addptr %y_ptr, %at : !tt.ptr<f32>, i32
      tt.store %4, %c : !tt.ptr<f32>
    }
"""


def test_counter_of_a_loop_that_has_the_name_of_an_address_in_another_is_none() -> None:
    """So it is where Triton was told to leave out line tables, and names are numbers."""
    text = KERNEL.format(tile="8x16", layout="#blocked", stored="%0") + SECOND_LOOP
    assert accesses(text)[-1].arguments == {"y_ptr"}


@pytest.mark.parametrize(
    ("stored", "layout", "told"),
    [("%unknown", "#blocked", "which argument is accessed: tt.store %unknown"), ("%0", "#ttg.new<{}>", "#ttg.new")],
)
def test_text_that_is_not_understood_is_refused(stored: str, layout: str, told: str) -> None:
    with pytest.raises(BuildError, match=told):
        racing_tiles(KERNEL.format(tile="8x16", layout=layout, stored=stored))
