"""The package for 64-bit ARM, compiled on this machine as docs/embedding.md says. Nothing of it runs here."""

from __future__ import annotations

import subprocess

import pytest
from support.embedding import ROOT, command_blocks, run

PREFIX = ROOT / "build" / "sala-aarch64"
_LIBRARIES = ("lib/libsala.so.1", "lib/libsala_ort.so", "bin/sala-run")


@pytest.mark.release
def test_package_is_compiled_for_aarch64() -> None:
    (block,) = command_blocks("aarch64")
    run(block)
    for name in _LIBRARIES:
        header = subprocess.run(["readelf", "-h", PREFIX / name], capture_output=True, text=True, check=True).stdout
        assert "Machine:                           AArch64" in header
    assert (PREFIX / "lib" / "libsala_runtime.a").is_file()
    assert (PREFIX / "lib" / "cmake" / "Sala" / "SalaConfig.cmake").is_file()
