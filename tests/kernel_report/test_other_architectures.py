"""Kernels of the architectures that a library has only where it is built for them, as docs/gpus.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import ROOT
from support.kernel_gates import overwriting, spilling, too_large, wrong_products

from sala_export.kernel_report.report import KernelReport, report_kernels
from sala_export.kernel_report.shipped import shipped_architectures, shipped_kernels
from sala_export.ops.common.targets import AOT_ARCHITECTURES, ARCHITECTURES

OTHERS = sorted(ARCHITECTURES.keys() - set(AOT_ARCHITECTURES))


def build(folder: Path, architectures: str) -> Path:
    """Build the plugin library in `folder`."""
    wanted = (f"-DSALA_ARCHITECTURES={architectures}", "-DSALA_RUNTIME_PYTHON=OFF")
    for command in (
        ("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DPython3_EXECUTABLE={sys.executable}", *wanted),
        ("cmake", "--build", str(folder), "--target", "sala_plugins"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "plugins" / "libsala_plugins.so"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plugins"), ",".join(map(str, OTHERS)))


@pytest.fixture(scope="module")
def reports(library: Path) -> tuple[KernelReport, ...]:
    return report_kernels(shipped_kernels(library))


@pytest.mark.release
def test_library_has_kernels_of_what_was_asked_for_alone(library: Path) -> None:
    assert sorted(shipped_architectures(library)) == OTHERS


@pytest.mark.release
def test_kernels_of_other_architectures_keep_the_same_rules(reports: tuple[KernelReport, ...]) -> None:
    assert {report.shipped.sm for report in reports} == set(OTHERS)
    assert [*spilling(reports), *too_large(reports), *wrong_products(reports), *overwriting(reports)] == []


@pytest.mark.release
def test_library_for_a_board_is_compiled_on_another_machine_as_the_page_says() -> None:
    (block,) = re.findall(
        r"^```sh aarch64\n(.*?)^```", (ROOT / "docs" / "gpus.md").read_text(), re.MULTILINE | re.DOTALL
    )
    script = block.replace("cmake -S .", f"cmake -S . -D Python3_EXECUTABLE={sys.executable}")
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    library = ROOT / "build" / "plugins-aarch64" / "plugins" / "libsala_plugins.so"
    command = ["readelf", "-hdVW", "--dyn-syms", library]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "AArch64" in told
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", told) == ["libc.so.6"]
    assert {"getCreators", "setLoggerFinder"} <= set(re.findall(r"GLOBAL DEFAULT +\d+ (\w+)", told))
    newest = max(tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", told))
    assert newest <= (2, 35), "Ubuntu 22.04, the oldest system of a board"


def test_architecture_without_tiles_is_refused_by_the_build(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "plugins.aot.compile_kernels",
        "--output-dir",
        str(tmp_path),
        "--architectures",
        "100",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "argument --architectures: invalid choice: 100 (choose from 86, 87, 89, 90, 110, 120, 121)" in done.stderr
    assert list(tmp_path.iterdir()) == []
