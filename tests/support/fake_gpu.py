"""The fakes of the C++ tests (runtime/tests/fakes) as libraries that Python can load, so without sanitizers."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_FAKES = REPOSITORY / "runtime" / "tests" / "fakes"
_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-fake-gpu-")


def _compile(name: str, soname: str, *sources: Path) -> Path:
    """Compile a library to a folder of its own; `soname` is the name under which it takes another's place."""
    library = Path(_FOLDER.name) / name / soname
    library.parent.mkdir(exist_ok=True)
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    assert triton.origin is not None
    includes = [_FAKES.parent, REPOSITORY / "runtime" / "src", Path(triton.origin).parent / "backends/nvidia/include"]
    command = ["c++", "-std=c++20", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", library]
    command += [f"-I{folder}" for folder in includes]
    done = subprocess.run([*command, *sources, "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


@functools.cache
def fake_cuda() -> Path:
    """A `libcuda.so.1` with one GPU of compute capability 12.0."""
    return _compile("cuda", "libcuda.so.1", _FAKES / "fake_cuda.cc")


@functools.cache
def fake_tensorrt(soname: str) -> Path:
    """A TensorRT for RTX 1.7 under the name of the real one."""
    interface = REPOSITORY / "runtime" / "src" / "engines" / "tensorrt" / "interface.cc"
    return _compile("tensorrt", soname, _FAKES / "fake_step.cc", _FAKES / "fake_tensorrt.cc", interface)


@functools.cache
def empty_library(soname: str) -> Path:
    """A library without functions, for programs that need one of this name to start."""
    source = Path(_FOLDER.name) / "empty.cc"
    source.write_text("")
    return _compile("empty", soname, source)
