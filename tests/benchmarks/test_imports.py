"""Benchmarks of the torch runtime start on a machine with torch, Triton and pydantic, and little else of ours."""

from __future__ import annotations

from pathlib import Path

from support.imports import run_without

LACKING = (
    "click",
    "fla",
    "httpx2",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "rich",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
)


def test_torch_runtime_and_its_benchmarks_import_without_what_a_bare_machine_lacks(tmp_path: Path) -> None:
    modules = "sala_export.torch_runtime.load, benchmarks.ttft, benchmarks.passkey, benchmarks.block_overlap"
    done = run_without(LACKING, ["-c", f"import {modules}"], tmp_path / "missing")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_that_is_needed_would_be_missed(tmp_path: Path) -> None:
    done = run_without(["pydantic"], ["-c", "import benchmarks.ttft"], tmp_path / "missing")
    assert "No module named 'pydantic', as this test wants it" in done.stderr


def test_without_the_compiled_part_there_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sala_export.runtime._native'] = None\n"
        "from benchmarks import ttft; sys.exit(ttft.main(['--preset', 'tiny', '--device', 'cpu', '--contexts', '9']))"
    )
    done = run_without([], ["-c", code], tmp_path / "missing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the compiled part of sala-export cannot be imported")
    assert done.stderr.count("\n") == 1
