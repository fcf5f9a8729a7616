"""Options of the tests; those of a GPU or a release run where there is one, and are counted where they did not."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", choices=["gpu"], action="append", default=[], help="Fail where this is missing.")
    parser.addoption("--release", action="store_true", help="Also run the tests of a release, which take minutes.")
    parser.addoption("--kills", type=int, default=3, help="How often tests/e2e/test_kill.py kills each command.")
    parser.addoption(
        "--loads", type=int, default=60, help="How often tests/e2e/test_replaced_bundle.py loads a bundle in each way."
    )
    parser.addoption("--fuzz-seconds", type=int, default=2, help="How long each fuzz target runs, with --release.")
    parser.addoption("--fuzz-inputs", type=int, default=300, help="How many inputs each fuzzer in Python tries.")
    parser.addoption("--fuzz-seed", type=int, default=0, help="The seed of the first manifest that is fuzzed.")
    parser.addoption(
        "--operators", type=Path, help="A libsala_ort.so for tests/plugins/test_*_cpu.py, instead of this checkout's."
    )
    parser.addoption(
        "--plugin-driver", help="A built plugin_driver for tests/plugins/test_plugin_gpu.py, which else builds it."
    )
    parser.addoption("--plugin-library", help="The plugin library that it opens, if not that of the installation.")


def pytest_configure(config: pytest.Config) -> None:
    """Test processes side by side share the cores: torch's threads wait for each other by spinning.

    Raises: pytest.UsageError without the GPU or the operators that were asked for, before there are such processes,
        which would not tell.
    """
    if "gpu" in config.getoption("--require") and not torch.cuda.is_available():
        raise pytest.UsageError("--require gpu: no CUDA device here")
    if operators := config.getoption("--operators"):
        if not operators.is_file():
            raise pytest.UsageError(f"--operators: {operators} is not there")
        from support import cpu_operators

        cpu_operators.given_library = operators
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


LONGEST = (
    "runtime/test_native.py",
    "embedding/test_page.py",
    "e2e/test_long_prompt.py",
    "plugins/test_sanitizers_cpu.py",
    "benchmarks/test_kernel_compilation.py",
    "torch_runtime/test_batches.py",
    "docs/test_commands.py",
)
"""Files that take a minute or more. They come first, so that no process has one left when the others have ended."""


def _place(item: pytest.Item) -> int:
    file = item.path.relative_to(Path(__file__).parent).as_posix()
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_place)
    if not config.getoption("--release"):
        for item in items:
            if item.get_closest_marker("release"):
                item.add_marker(pytest.mark.skip(reason="a test of releases"))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@functools.cache
def has_driver() -> bool:
    """Whether an NVIDIA driver is installed, with a GPU or without."""
    return ctypes.util.find_library("cuda") is not None


@pytest.fixture(autouse=True)
def no_fake_driver_stays() -> Iterator[None]:
    """Refuse a fake `libcuda.so.1` in this process: it is never unloaded, and later tests would get it as driver."""
    yield
    if has_driver():
        return
    try:
        ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return
    pytest.fail("a libcuda.so.1 was loaded: load fakes in a process of their own, or build them without a soname")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for reason, told in (
        ("no CUDA device", "gpu tests, for want of a CUDA device (--require gpu makes that a failure)"),
        ("a test of releases", "tests of releases, which take minutes (--release runs them)"),
        ("mounting needs root", "tests of disks and containers, which need root and the right to mount"),
        ("no browser", "tests of the server's page, which need Chromium (on Debian: apt install chromium)"),
        (
            "Triton Inference Server is not installed",
            "tests of Triton Inference Server (scripts/install.sh test,dev installs one into build/)",
        ),
        (
            "aarch64 can not be compiled for and emulated",
            "tests of 64-bit Arm (on Debian: apt install g++-aarch64-linux-gnu qemu-user)",
        ),
        ("lm-eval is not installed", "modules of tests of lm-evaluation-harness (pip install -e '.[eval]')"),
        ("ray is not installed", "modules of tests of Ray Serve (pip install -e '.[fleet]')"),
        ("ai-dynamo is not installed", "modules of tests of NVIDIA Dynamo (docs/fleet.md says how to install it)"),
        (
            "no site generator",
            "tests of the documentation site (scripts/install.sh test,dev,docs installs what it needs)",
        ),
    ):
        if count := sum(reason in text for text in skipped):
            terminalreporter.write_line(f"NOT RUN: {count} {told}", yellow=True)
