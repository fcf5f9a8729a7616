"""What `sala-export doctor` finds and concludes: of the libraries that are here, of libraries made for the test."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from support.runtime_bundles import tiny_cpu_bundle

from sala_export.bundle.manifest import Manifest
from sala_export.bundle.reader import Bundle
from sala_export.cli.app import run
from sala_export.diagnosis.libraries import Gpu, Libraries, Library, _probed, find_libraries
from sala_export.diagnosis.report import _without_home
from sala_export.diagnosis.verdicts import chosen, judge

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return FAILS; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, device ? "B" : "A", length); return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = (device + 1ul) << 34; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? (device ? 12 : 8) : (device ? 0 : 6);
  return 0;
}
"""


def compiled(folder: Path, source: str, *options: str) -> str:
    file, library = folder / "library.c", folder / "library.so"
    file.write_text(source, encoding="ascii")
    subprocess.run(["cc", "-shared", "-fPIC", *options, "-o", library, file], check=True)
    return str(library)


def test_libraries_that_are_here_tell_their_versions() -> None:
    found = find_libraries()
    assert found.onnxruntime.version == version("onnxruntime")
    assert found.tensorrt_rtx.version == version("tensorrt-rtx-cu13")
    assert found.torch.version == version("torch")
    assert found.native.works
    assert found.native.path is not None
    assert Path(found.native.path).name.startswith("_native")
    for library in (found.onnxruntime, found.tensorrt_rtx):
        assert library.path is not None
        assert Path(library.path).is_file()


def test_driver_tells_its_gpus(tmp_path: Path) -> None:
    library = compiled(tmp_path, DRIVER, "-DFAILS=0")
    found = _probed("driver", "cuda", [str(tmp_path / "none.so"), library])
    assert (found.version, found.path, found.problem) == ("13.1", library, None)
    assert found.gpus == (
        Gpu(name="A", compute_capability="8.6", memory_bytes=1 << 34),
        Gpu(name="B", compute_capability="12.0", memory_bytes=1 << 35),
    )


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        (DRIVER, ["-DFAILS=100"], "the NVIDIA driver cannot start: error 100 of CUDA"),
        ("int nothing;", [], "undefined symbol: cuInit"),
        ('#include <stdlib.h>\n__attribute__((constructor)) void f(void) { abort(); }', [], "ends with signal 6"),
        ('#include <stdlib.h>\n__attribute__((constructor)) void f(void) { exit(3); }', [], "ends with code 3"),
    ],
    ids=["fails", "another library", "aborts", "exits"],
)  # fmt: skip
def test_broken_library_is_told_and_ends_nothing(source: str, options: list[str], problem: str, tmp_path: Path) -> None:
    found = _probed("driver", "cuda", [compiled(tmp_path, source, *options)])
    assert not found.works
    assert problem in (found.problem or "")


@pytest.fixture(scope="module")
def bundle() -> Path:
    return tiny_cpu_bundle()


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    """For compute capability 8.6, with its weights."""
    manifest = Bundle.open(bundle).manifest
    engine = replace(
        manifest.engine, compute_capabilities=("8.6",), tensorrt_flavour="rtx", tensorrt_version="1.7.1.116"
    )
    return replace(manifest, engine=engine)


A6000 = Gpu(name="RTX A6000", compute_capability="8.6", memory_bytes=48 << 30)
RTX5090 = Gpu(name="RTX 5090", compute_capability="12.0", memory_bytes=32 << 30)
OLD = Gpu(name="Tesla P4", compute_capability="6.1", memory_bytes=8 << 30)


def whole(*gpus: Gpu, **changed: Library) -> Libraries:
    """A machine with all libraries and these GPUs."""
    found = {name: Library(title=name, version="9.9") for name in ("native", "tensorrt", "onnxruntime", "operators")}
    found["driver"] = Library(title="driver", version="13.0", gpus=gpus)
    found["tensorrt_rtx"] = Library(title="TensorRT for RTX", version="1.7.1.116")
    found["torch"] = Library(title="torch", version="2.13.0", has_gpu=bool(gpus))
    return Libraries(**{**found, **changed})


MISSING = Library(title="it", problem="it is not here")


@pytest.mark.parametrize(
    ("libraries", "auto", "detail"),
    [
        (whole(A6000), "tensorrt", "on RTX A6000"),
        (whole(OLD, A6000), "tensorrt", "on RTX A6000"),
        (whole(RTX5090), "onnxruntime", "the bundle's engine is for 8.6, this machine has RTX 5090 (12.0)"),
        (whole(), "onnxruntime", "the NVIDIA driver finds no GPU"),
        (whole(A6000, driver=MISSING), "onnxruntime", "it: it is not here; install driver 580 or later"),
        (
            whole(driver=Library(title="driver", version="12.8", gpus=(A6000,))),
            "onnxruntime",
            "the NVIDIA driver supports CUDA 12.8: install driver 580 or later",
        ),
        (whole(A6000, tensorrt_rtx=MISSING), "onnxruntime", "pip install tensorrt-rtx-cu13"),
        (
            whole(A6000, tensorrt_rtx=Library(title="TensorRT for RTX", version="1.8.0.5")),
            "onnxruntime",
            "TensorRT for RTX is 1.8.0.5, the bundle needs 1.7.1.116: pip install tensorrt-rtx-cu13==1.7.1.116",
        ),
        (whole(A6000, native=MISSING), None, "install sala-export again"),
        (whole(onnxruntime=MISSING), None, "the NVIDIA driver finds no GPU"),
        (whole(operators=MISSING), None, "the NVIDIA driver finds no GPU"),
    ],
)
def test_auto_takes_the_first_runtime_that_would_run(
    manifest: Manifest, libraries: Libraries, auto: str | None, detail: str
) -> None:
    verdicts = judge(libraries, manifest)
    assert chosen(verdicts) == auto
    assert detail in verdicts[0].detail


ORIN = Gpu(name="Orin", compute_capability="8.7", memory_bytes=61 << 30)


def test_board_runs_tensorrt_proper_with_any_driver_where_its_kernels_are_installed() -> None:
    board = whole(driver=Library(title="driver", version="12.6", gpus=(ORIN,)), tensorrt_rtx=MISSING)
    assert judge(board, architectures=[87])[0].detail == "on Orin"
    assert judge(board)[0].detail == (
        "the kernels are for SM86, SM89, SM90, SM120, this machine has Orin (8.7): install with scripts/install.sh "
        "--architectures 86,87,89,90,120 (docs/gpus.md)"
    )
    without = judge(whole(ORIN, tensorrt=MISSING), architectures=[87])[0]
    assert (without.runs, without.detail) == (False, "it: it is not here; pip install tensorrt")


def test_torch_runs_on_a_gpu_that_the_kernels_serve() -> None:
    """It needs no bundle's engine, and `auto` never takes it."""
    details = [judge(whole(*gpus))[2].detail for gpus in ((RTX5090,), (OLD,), ())]
    assert details == ["on RTX 5090", *2 * ["on the CPU, which is for verification"]]
    verdicts = judge(whole(onnxruntime=MISSING, torch=MISSING))
    assert [verdict.runs for verdict in verdicts] == [False, False, False]
    assert chosen(judge(whole(onnxruntime=MISSING))) is None


def test_bundle_without_weights_says_what_to_give(manifest: Manifest) -> None:
    bare = replace(manifest, weights=replace(manifest.weights, included=False))
    assert [verdict.runs for verdict in judge(whole(A6000), bare)] == [True, True, True]
    assert all("--weights DIR" in verdict.detail for verdict in judge(whole(A6000), bare))


def test_command_tells_text_and_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1
    assert told["packages"]["numpy"] == version("numpy")
    assert told["bundle"]["compute_capabilities"] == list(Bundle.open(bundle).manifest.engine.compute_capabilities)
    assert {each["runtime"] for each in told["runtimes"]} == {"tensorrt", "onnxruntime", "torch"}
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for title in ("sala-export runtime", "NVIDIA driver (CUDA)", "TensorRT for RTX", "ONNX Runtime", "PyTorch", "auto"):
        assert title in text


def test_memory_that_9b_needs_is_told_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("sala_export.engine.host", "sala_export.diagnosis.report"):
        monkeypatch.setattr(f"{module}.total_host_bytes", lambda: 12 << 30)
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (fitting,) = (line for line in lines if line.startswith("9B, no GPU"))
    (warning,) = (line for line in lines if line.startswith("warning"))
    assert all(name in fitting for name in ("fp8", "int8", "nvfp4", "int4"))
    assert "bf16 (19." in warning
    assert "fp8" not in warning
    (processor,) = (line for line in lines if line.startswith("processor"))
    assert "12.00 GiB, instructions " in processor


def test_directory_that_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(tmp_path)]) == 2
    assert "bundle.json" in capsys.readouterr().err


def test_report_names_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    found = {"path": "/home/someone/venv/lib.so", "problems": ["in /home/someone/x: no", "/home/someoneelse/y"], "n": 1}
    assert _without_home(found) == {"path": "~/venv/lib.so", "problems": ["in ~/x: no", "/home/someoneelse/y"], "n": 1}
