"""The plugins inside TensorRT for RTX, and the library that carries them."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.plugin_calls import LIGHTNING, SPARSE, PluginCall
from support.rtx_build import BuildOutcome, SingleOperator, build_single_operator

from sala_export.installation import onnxruntime_operators, plugin_library, soname_shim

CHUNK = 300
_SCRATCH_GRANULARITY_BYTES = 512  # seen with TensorRT for RTX 1.7.1.116
OPERATORS = pytest.mark.parametrize("call", [LIGHTNING, SPARSE], ids=lambda call: call.contract.name)


def _request(call: PluginCall, capability: str = "SM120") -> SingleOperator:
    prefill = [{**call.dims, "B": 1, "T": tokens} for tokens in (1, 64, CHUNK)]
    return SingleOperator(
        operator=call.contract.name,
        attributes=call.attributes,
        profiles=[prefill, [{**call.dims, "B": 1, "T": 1}] * 3],
        capability=capability,
    )


def _build(request: SingleOperator, folder: Path) -> BuildOutcome:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(build_single_operator, request, folder).result(timeout=120)


@OPERATORS
@pytest.mark.parametrize("capability", ["SM86", "SM120"])
def test_operator_builds_with_the_plugins_inside(call: PluginCall, capability: str, tmp_path: Path) -> None:
    outcome = _build(_request(call, capability), tmp_path)
    assert outcome.plan is not None, outcome.log
    assert plugin_library().read_bytes() in outcome.plan
    dtypes = {"bfloat16": "BF16", "float32": "FLOAT"}
    expected = [
        (
            output.name,
            tuple(-1 if extent in call.dims else size for extent, size in zip(output.shape, shape, strict=True)),
            dtypes[call.activation if output.dtype == "X" else output.dtype],
        )
        for output in call.contract.outputs
        for shape in [call.shape_of(output)]
    ]
    assert outcome.outputs == expected


@OPERATORS
def test_builder_reserves_the_workspace_of_each_profile(call: PluginCall, tmp_path: Path) -> None:
    outcome = _build(_request(call), tmp_path)
    reserved = [int(match[1]) for line in outcome.log if (match := re.search(r"Max Scratch Memory: (\d+) bytes", line))]
    asked = [replace(call, dims={**call.dims, "B": 1, "T": tokens}).workspace_bytes for tokens in (CHUNK, 1)]
    assert reserved == [-(-size // _SCRATCH_GRANULARITY_BYTES) * _SCRATCH_GRANULARITY_BYTES for size in asked]


@OPERATORS
def test_unsupported_attribute_fails_the_build_with_its_name(
    call: PluginCall, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = _build(_request(call.with_attributes(head_dim=96)), tmp_path)
    assert outcome.plan is None
    assert f"{call.contract.onnx_type}: no kernels for head_dim = 96" in capfd.readouterr().err


def test_library_exports_what_tensorrt_and_the_kernel_report_ask_for() -> None:
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", plugin_library()], capture_output=True, text=True, check=True
    ).stdout
    assert sorted(line.split()[-1] for line in listing.splitlines()) == [
        "getCreators",
        "salaKernelImage",
        "salaKernelIndex",
        "setLoggerFinder",
    ]


def _dynamic_entries(library: Path, kind: str) -> set[str]:
    listing = subprocess.run(["readelf", "--dynamic", library], capture_output=True, text=True, check=True).stdout
    return {match[1] for line in listing.splitlines() if kind in line and (match := re.search(r"\[(.+)\]", line))}


def test_library_needs_only_the_c_library() -> None:
    # A plan carries it to machines that have neither this compiler's C++ runtime nor, when building, a driver.
    assert _dynamic_entries(plugin_library(), "(NEEDED)") <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}


@pytest.mark.parametrize("find", [plugin_library, onnxruntime_operators])
def test_library_needs_no_newer_c_library_than_ubuntu_22_04(find: Callable[[], Path]) -> None:
    listing = subprocess.run(["readelf", "-V", "-W", find()], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", listing)}
    assert (2, 2, 5) in versions
    assert max(versions) <= (2, 35)


def test_shim_has_the_missing_name_and_needs_the_present_one() -> None:
    assert _dynamic_entries(soname_shim(), "(SONAME)") == {"libtensorrt_rtx.so"}
    assert "libtensorrt_rtx.so.1" in _dynamic_entries(soname_shim(), "(NEEDED)")
