"""TensorRT in the runtime as far as no GPU allows: what is refused, what `auto` takes, and the real library's words.

What the engine does with TensorRT is in the C++ tests (runtime/tests/tensorrt_*_test.cc), on a fake of it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bundles import copy_bundle, tiny_bundle
from support.checkpoints import edit_json
from support.fake_gpu import fake_cuda
from support.native_runtime import sanitized_build
from support.runtime_bundles import tiny_cpu_bundle

import sala_export
from sala_export.cli.app import run
from sala_export.errors import BundleError, UnsupportedError
from sala_export.installation import onnxruntime_library, onnxruntime_operators

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver: see test_tensorrt_gpu.py")

LOAD = """
import ctypes, sys
import sala_export
from sala_export.errors import SalaError

ctypes.CDLL(sys.argv[1])  # the engine then finds this driver
try:
    sala_export.load(sys.argv[2], runtime="tensorrt")
except SalaError as error:
    print(type(error).__name__, error.code, error)
"""


def load_on_fake_gpu(bundle: Path) -> str:
    """What loading for the fake GPU of compute capability 12.0 says; TensorRT for RTX is the real one."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, fake_cuda(), bundle], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@no_gpu
def test_missing_driver_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match=r"there is no NVIDIA driver .*: install one, or choose runtime onnxru"):
        sala_export.load(tiny_cpu_bundle(), runtime="tensorrt")


@no_gpu
def test_auto_runs_on_the_cpu_and_tells_why() -> None:
    llm = sala_export.load(tiny_cpu_bundle(), threads=1)
    assert llm.runtime == "onnxruntime"
    assert "there is no NVIDIA driver" in llm.runtime_reason
    assert sala_export.load(tiny_cpu_bundle(), threads=1, runtime="onnxruntime").runtime_reason == ""


@no_gpu
def test_bundle_without_weights_asks_for_them(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_cpu_bundle(), tmp_path / "copy.sala")
    edit_json(bundle / "bundle.json", lambda fields: fields["weights"].update(included=False))
    with pytest.raises(BundleError, match=r"was built with --no-weights: give the checkpoint's directory"):
        sala_export.load(bundle, runtime="tensorrt")


@no_gpu
def test_commands_take_the_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(tiny_bundle("rtx5090")), "--prompt", "a", "--runtime", "tensorrt"]) == 2
    assert "there is no NVIDIA driver" in capsys.readouterr().err
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), "--tokens", "-", "--runtime", "tensorrt"]
    done = subprocess.run(command, input="1 2 3", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "DeviceMissing: there is no NVIDIA driver" in done.stderr
    libraries = ["--onnxruntime", onnxruntime_library(), "--operators", onnxruntime_operators()]
    automatic = [*command[:-2], "--max-new-tokens", "1", *libraries]
    done = subprocess.run(automatic, input="1 2 3", capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "sala-run: runs on onnxruntime on the CPU, not on tensorrt: there is no NVIDIA driver" in done.stderr


def test_real_library_takes_the_plan_until_it_needs_the_driver() -> None:
    """The wheel's library is found, its version compared, the plan and the library inside proved and handed over.

    The fake driver is one that TensorRT cannot work with, and it says so.
    """
    told = load_on_fake_gpu(tiny_bundle("rtx5090"))
    assert told.startswith("UnsupportedError DeviceUnsuitable the NVIDIA driver is too old for TensorRT for RTX"), told
    assert "install driver 580 or later" in told
    assert told.count("\n") == 1


def test_real_plan_with_another_plugin_library_never_reaches_tensorrt(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_bundle("rtx5090"), tmp_path / "copy.sala")
    edit_json(bundle / "bundle.json", lambda fields: fields["engine"].update(plugin_library_sha256="0" * 64))
    assert "is not the plugin library of bundle.json: do not trust this bundle" in load_on_fake_gpu(bundle)


def test_engine_for_another_gpu_names_the_runtimes_that_can(tmp_path: Path) -> None:
    bundle = copy_bundle(tiny_bundle("rtx5090"), tmp_path / "copy.sala")
    edit_json(bundle / "bundle.json", lambda fields: fields["engine"].update(compute_capabilities=["8.6", "8.9"]))
    told = load_on_fake_gpu(bundle)
    assert told.startswith("UnsupportedError DeviceUnsuitable the bundle's engine is for ")
    assert "GPUs of compute capability 8.6, 8.9, this machine has Fake GPU 0 (12.0)" in told
    assert "choose runtime onnxruntime, which runs the bundle on this machine's CPU, or torch" in told
    assert "build it again with sala-export build --gpu 'rtx5090,Fake GPU 0'" in told
