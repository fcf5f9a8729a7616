"""The two TensorRTs behind their seam."""

from __future__ import annotations

import ctypes
import importlib
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sala_export.engine.flavour import select_flavour
from sala_export.engine.recipe import load_target
from sala_export.engine.tensorrt import TensorRT, present_capability
from sala_export.engine.tensorrt_rtx import SERVED, TensorRTForRTX
from sala_export.errors import UnsupportedError
from sala_export.installation import recipe_folder
from sala_export.specs import ComputeCapability, FlavourName


@pytest.mark.parametrize(
    ("asked", "given"),
    [(FlavourName.AUTO, "rtx"), (FlavourName.RTX, "rtx"), (FlavourName.TENSORRT, "tensorrt")],
)
def test_flavour_is_found_by_name(asked: FlavourName, given: str) -> None:
    assert select_flavour(asked).name == given


class FakeConfig:
    """The part of a builder configuration that holds targets."""

    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.asked: dict[int, Any] = {}

    def set_compute_capability(self, target: Any, index: int) -> None:
        assert index < self.num_compute_capabilities, "TensorRT wants the number first"
        self.asked[index] = target

    def get_compute_capability(self, index: int) -> Any:
        return self.asked[index]


@pytest.mark.parametrize(
    ("gpu", "names"), [("rtx", ["SM86", "SM89", "SM120"]), ("a6000d", ["SM120"]), ("rtx5090,a6000", ["SM86", "SM120"])]
)
def test_rtx_asks_for_every_capability_of_a_target(gpu: str, names: list[str]) -> None:
    flavour, capabilities, config = TensorRTForRTX(), load_target(gpu).compute_capabilities, FakeConfig()
    flavour.set_targets(flavour.load(), config, capabilities)
    assert [config.asked[index].name for index in range(config.num_compute_capabilities)] == names
    assert flavour.targets(config) == capabilities


def test_rtx_names_its_targets_when_it_lacks_one() -> None:
    flavour = TensorRTForRTX()
    with pytest.raises(UnsupportedError, match=r"has no target SM70, it has SM120, .*SM86"):
        flavour.set_targets(flavour.load(), SimpleNamespace(), [ComputeCapability(8, 6), ComputeCapability(7, 0)])


def test_missing_python_module_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UnsupportedError, match=r"No module named 'tensorrt_rtx'\): pip install 'sala-export\[build\]'"):
        TensorRTForRTX().load()
    with pytest.raises(UnsupportedError, match=r"No module named 'tensorrt'\): install it with its Python module as"):
        TensorRT().load()


def test_tensorrt_builds_for_the_gpu_that_is_here() -> None:
    TensorRT(present=lambda: ComputeCapability(8, 6)).check(load_target("a6000"))


def test_tensorrt_refuses_to_build_for_another_gpu() -> None:
    with pytest.raises(UnsupportedError, match=r"this machine, SM89, not for the NVIDIA RTX A6000, SM86"):
        TensorRT(present=lambda: ComputeCapability(8, 9)).check(load_target("a6000"))


def test_tensorrt_refuses_to_build_for_several_architectures() -> None:
    with pytest.raises(UnsupportedError, match=r"not for NVIDIA RTX A6000 and NVIDIA GeForce RTX 5090 at once: name"):
        TensorRT(present=lambda: ComputeCapability(8, 6)).check(load_target("a6000,rtx5090"))
    TensorRT(present=lambda: ComputeCapability(12, 0)).check(load_target("rtx5090,a6000d"))


def test_tensorrt_refuses_to_build_without_a_gpu() -> None:
    told = r"this machine has none: build there, or use --flavour rtx to build for the NVIDIA RTX A6000 here"
    with pytest.raises(UnsupportedError, match=told):
        TensorRT(present=lambda: None).check(load_target("a6000"))


def test_no_advice_leads_to_a_flavour_that_does_not_serve_the_gpu(tmp_path: Path) -> None:
    """TensorRT for RTX has no target for Hopper."""
    text = (recipe_folder() / "a6000.toml").read_text(encoding="utf-8")
    own = tmp_path / "hopper.toml"
    own.write_text(text.replace('"8.6"', '"9.0"'), encoding="utf-8")
    for present in (None, ComputeCapability(8, 6)):
        with pytest.raises(UnsupportedError, match=r": build there$"):
            TensorRT(present=lambda here=present: here).check(load_target(str(own)))
    rtx = TensorRTForRTX()
    with pytest.raises(UnsupportedError, match=r"or build with --flavour tensorrt on a machine with that GPU$"):
        rtx.set_targets(rtx.load(), FakeConfig(), [ComputeCapability(9, 0)])


@pytest.mark.parametrize(
    ("gpu", "machine", "message"),
    [
        (
            "orin64",
            "aarch64",
            r"has no target for the NVIDIA Jetson AGX Orin 64GB \(SM87\): build on the machine itself",
        ),
        ("rtx3090,thor", "x86_64", r"has no target for the NVIDIA Thor \(SM110\): .*, with --flavour tensorrt"),
        (
            "spark",
            "x86_64",
            r"the NVIDIA GB10 is in a machine of aarch64, .* machine that builds it, x86_64: build there",
        ),
        ("rtx3090", "aarch64", r"the NVIDIA GeForce RTX 3090 is in a machine of x86_64, "),
    ],
)
def test_rtx_refuses_gpus_without_a_target_and_of_other_machines(
    gpu: str, machine: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(UnsupportedError, match=message):
        TensorRTForRTX().check(load_target(gpu))
    TensorRTForRTX().check(load_target("spark" if machine == "aarch64" else "rtx3090,rtxpro6000,l40s"))


def test_tensorrt_does_not_send_to_a_flavour_that_builds_no_code_for_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(UnsupportedError, match=r"this machine has none: build there$"):
        TensorRT(present=lambda: None).check(load_target("spark"))


def test_served_targets_are_those_of_the_installed_release() -> None:
    names = TensorRTForRTX().load().ComputeCapability.__members__
    assert {name for name in names if name.startswith("SM")} == SERVED


class FakeDriver:
    """The four functions of the CUDA driver that are called, for one device of capability 8.9."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802 (the driver's names)
        return self.status

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0


@pytest.mark.parametrize(("status", "expected"), [(0, ComputeCapability(8, 9)), (100, None)])
def test_capability_is_read_from_the_driver(
    monkeypatch: pytest.MonkeyPatch, status: int, expected: ComputeCapability | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(status))
    assert present_capability() == expected


def test_machine_without_driver_has_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert present_capability() is None
