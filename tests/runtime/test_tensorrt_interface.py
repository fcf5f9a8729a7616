"""The positions of TensorRT's functions (runtime/src/engines/tensorrt/interface.h) against NVIDIA's own callers.

The Python bindings of a TensorRT are compiled with the header of exactly that version. Given the fake TensorRT in the
place of the library, they call its functions where NVIDIA has them, and the fake answers where `interface.h` has them:
a call of any other position ends the process. So this proves a version without a GPU and without its header.

Here for the bindings that are installed. For others, unpack their wheel and look at what
`python tests/support/tensorrt_bindings.py tensorrt 11.4.0.106 .../tensorrt_bindings/tensorrt.so` says. So proved:
tensorrt-cu13-bindings 10.14.1.48.post1 and 11.4.0.106.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

EXPECTED = {
    "profiles": 2,
    "tensors": ["input_ids", "logits"],
    "modes": ["INPUT", "OUTPUT"],
    "dtypes": ["INT64", "FLOAT"],
    "shape": [-1, 50],
    "largest": [[1, 16], [1, 1]],
    "activations": [4096, 1024],
}
EVENTS = [
    "runtime",
    "host code allowed",
    "deserialize",
    "context",
    "profile 1",
    "device memory 1024",
]
RTX_EVENTS = [
    "runtime cache",
    "specialization 1",
    "cache read",
    "context specialization 1 cached 1",
    "is stream capturable",
]


def check(told: dict[str, Any], flavour: str) -> None:
    answers = told["answers"]
    assert {name: answers[name] for name in EXPECTED} == EXPECTED
    assert answers["log"][:2] == ["host code is not allowed", "no address of input_ids"]
    assert answers["allocator"] == ["allocate 1000 256", "deallocate 4096", "allocate 2000 256", "deallocate 4096"]
    events = [event for event in told["events"] if not event.startswith("enqueue")]
    assert events == EVENTS + (RTX_EVENTS if flavour == "rtx" else [])
    assert told["events"].count("enqueue profile 1 batch 1 tokens 1") == 1
    if flavour == "rtx":
        assert answers["cache"] == "compiled 42"


def bindings() -> tuple[str, Path]:
    """Version and extension module of the installed TensorRT for RTX, which is not imported."""
    spec = importlib.util.find_spec("tensorrt_rtx_bindings")
    assert spec is not None
    assert spec.origin is not None
    return metadata.version("tensorrt-rtx-cu13"), Path(spec.origin).with_name("tensorrt_rtx.so")


def drive(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = Path(__file__).parents[1] / "support" / "tensorrt_bindings.py"
    return subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_installed_tensorrt_for_rtx_has_its_functions_where_the_engine_calls_them() -> None:
    done = drive("rtx", *bindings())
    assert done.returncode == 0, done.stdout + done.stderr
    check(json.loads(done.stdout), "rtx")


def test_wrong_positions_do_not_pass_unseen() -> None:
    """TensorRT 10 has its functions elsewhere than TensorRT for RTX."""
    assert drive("rtx", *bindings(), "tensorrt", "10.14.1.48").returncode != 0
