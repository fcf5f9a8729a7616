"""The CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer, on buffers with nothing to spare."""

from __future__ import annotations

import subprocess
from pathlib import Path

NATIVE = Path(__file__).parent / "native_cpu"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_random_sizes_touch_nothing_outside_their_buffers(tmp_path: Path) -> None:
    configure = ["cmake", "-S", NATIVE, "-B", tmp_path, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    # Unoptimised and without line numbers: compiling takes longer than running, and a report still names functions.
    run(*configure, f"-DCMAKE_CXX_FLAGS={FLAGS}", "-DCMAKE_CXX_FLAGS_RELEASE=-O0")
    run("cmake", "--build", tmp_path, "--target", "cpu_stress")
    calls = run(tmp_path / "cpu_stress").split()
    assert calls[1] == "calls"
    assert int(calls[0]) >= 80
