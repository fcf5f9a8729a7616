"""What NVIDIA's own tools, which come with Triton, print of a cubin."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from ..errors import BuildError


def disassemble(cubin: bytes) -> str:
    """Return the output of `nvdisasm -c`. Raises: BuildError if Triton came without the tool, or if it fails."""
    import triton

    return _run(triton.knobs.nvidia.nvdisasm.path, "-c", cubin)


def resource_usage(cubin: bytes) -> str:
    """Return the output of `cuobjdump -res-usage`. Raises: as `disassemble`."""
    import triton

    return _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin)


def _run(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory(prefix="sala-kernels-") as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        try:
            return subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout
        except FileNotFoundError:
            raise BuildError(f"{tool} is missing: install triton again, which brings it") from None
        except subprocess.CalledProcessError as error:
            raise BuildError(f"{Path(tool).name} fails: {error.stderr.strip().splitlines()[-1:]}") from None
