"""The plugins inside TensorRT for RTX, and the library that carries them."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.plugin_calls import LIGHTNING, SPARSE, PluginCall
from support.rtx_build import (
    BuildOutcome,
    SingleOperator,
    build_graph,
    build_single_operator,
    model_of,
    operator_node,
)

from sala_export.installation import onnxruntime_operators, plugin_library, soname_shim
from sala_export.ops.registry import BLOCK_QUANTIZE, BLOCK_SCALED_LINEAR, BLOCK_SCALED_LINEAR_ADD

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
    return _in_a_process(build_single_operator, request, folder)


def _in_a_process(build: Callable[..., BuildOutcome], *arguments: object) -> BuildOutcome:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(build, *arguments).result(timeout=120)


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


def _feed_forward(hidden: int, inner: int) -> bytes:
    """x quantised, gate and up, their product quantised, down and the residual stream; weights are inputs."""

    def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    weights = [
        value("gate_up", TensorProto.FLOAT8E4M3FN, 2 * inner, hidden),
        value("gate_up_scales", TensorProto.INT32, hidden // 128, 2 * inner),
        value("down", TensorProto.FLOAT8E4M3FN, hidden, inner),
        value("down_scales", TensorProto.INT32, inner // 128, hidden),
    ]
    nodes = [
        operator_node(BLOCK_QUANTIZE, ["x"], ["codes", "scales"], {"columns": hidden, "gated": 0}),
        operator_node(BLOCK_SCALED_LINEAR, ["codes", "scales", "gate_up", "gate_up_scales"], ["both"], {}),
        operator_node(BLOCK_QUANTIZE, ["both"], ["inner", "inner_scales"], {"columns": inner, "gated": 1}),
        operator_node(
            BLOCK_SCALED_LINEAR_ADD, ["inner", "inner_scales", "down", "down_scales", "x"], ["y"], {"factor": 0.25}
        ),
    ]
    x, y = (value(name, TensorProto.BFLOAT16, 1, "T", hidden) for name in ("x", "y"))
    return model_of(nodes, [x, *weights], [y]).SerializeToString()


def test_block_scaled_operators_build_without_a_conversion_between_them(tmp_path: Path) -> None:
    profiles = [{"x": [(1, tokens, 256) for tokens in (1, 64, CHUNK)]}, {"x": [(1, 1, 256)] * 3}]
    outcome = _in_a_process(build_graph, _feed_forward(256, 384), profiles, "SM120", tmp_path)
    assert outcome.plan is not None, outcome.log
    assert outcome.outputs == [("y", (1, -1, 256), "BF16")]
    layers = re.findall(r"LayerType: (\w+), Inputs", "\n".join(outcome.log))
    computing = [layer for layer in layers if layer != "shape_call"]
    assert computing == ["custom_layer"] * 4 * len(profiles), "plugins take what the plugins before them wrote"


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
