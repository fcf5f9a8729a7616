"""The CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer, on buffers with nothing to spare.

They do not see what tile registers of AMX load and store.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cpu_operators import runnable_product_levels
from support.native_cpu import build_programs, run

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are built."""
    build = tmp_path_factory.mktemp("sanitized")
    # Unoptimised and without line numbers: compiling takes longer than running, and a report still names functions.
    options = (f"-DCMAKE_CXX_FLAGS={FLAGS}", "-DCMAKE_CXX_FLAGS_RELEASE=-O0")
    build_programs(build, ["cpu_stress", "linear_levels"], *options)
    return build


def test_random_sizes_touch_nothing_outside_their_buffers(programs: Path) -> None:
    calls = run(programs / "cpu_stress").split()
    assert calls[1] == "calls"
    assert int(calls[0]) >= 80


def test_products_of_every_format_at_every_level(programs: Path) -> None:
    *levels, products = run(programs / "linear_levels").split()
    assert tuple(levels) == runnable_product_levels()
    assert int(products) > 100_000
