"""Reads what a cubin needs and holds, with NVIDIA's own tools, which come with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import BuildError
from .warp_groups import INSTRUCTION, LABEL, overwritten_operands, register_operands

_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")
_TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA)\.(\w+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class CubinFacts:
    """Facts about a cubin: registers, stack and spills of a thread, and the static shared memory of a block."""

    registers: int
    stack_bytes: int
    static_shared_bytes: int
    spill_instructions: int
    """Number of loads and stores of local memory."""
    tensor_core_instructions: int
    """`HMMA.16816` and `HGMMA` of the loop that has the most, per warp and turn; 0 without such a loop."""
    uses_warp_groups: bool
    """The loop has `HGMMA`, whose one instruction serves four warps and any number of columns."""
    register_operands: int
    """`HGMMA` with operand A in registers."""
    overwritten_operands: tuple[str, ...]
    """Instructions that may write these registers too early. There are none in correct code."""


def read_cubin(cubin: bytes) -> CubinFacts:
    """Read resources with `cuobjdump -res-usage`, and instructions with `nvdisasm`.

    Raises: BuildError if Triton came without these tools, or they fail.
    """
    import triton

    usage, assembly = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin), disassemble(cubin)
    values = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    if not values.keys() >= {"REG", "STACK", "SHARED", "LOCAL"}:
        raise BuildError(f"cuobjdump tells no resource usage: {' '.join(usage.split())[:200]}")
    instructions, loops = _instructions(assembly), _loops(assembly)
    bodies = [instructions[first : last + 1] for first, last in loops]
    counts = [sum(bool(_TENSOR_CORE.search(line)) for line in body) for body in bodies]
    largest = max(counts, default=0)
    body = bodies[counts.index(largest)] if largest else []
    return CubinFacts(
        registers=values["REG"],
        stack_bytes=values["STACK"] + values["LOCAL"],
        static_shared_bytes=values["SHARED"],
        spill_instructions=sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in instructions),
        tensor_core_instructions=largest,
        uses_warp_groups=any("HGMMA" in line for line in body),
        register_operands=register_operands(assembly),
        overwritten_operands=overwritten_operands(assembly),
    )


def disassemble(cubin: bytes) -> str:
    """Return the output of `nvdisasm -c`. Raises: BuildError as `read_cubin`."""
    import triton

    return _run(triton.knobs.nvidia.nvdisasm.path, "-c", cubin)


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


def _instructions(assembly: str) -> list[str]:
    return [match[1] for match in map(INSTRUCTION.match, assembly.splitlines()) if match]


def _loops(assembly: str) -> list[tuple[int, int]]:
    """First and last instruction of every loop: what lies between a label and a branch back to it."""
    labels: dict[str, int] = {}
    found, position = [], 0
    for line in assembly.splitlines():
        label = LABEL.match(line)
        instruction = INSTRUCTION.match(line)
        if label:
            labels[label[1]] = position
        elif instruction:
            branch = _BRANCH.search(instruction[1])
            if branch and branch[1] in labels:
                found.append((labels[branch[1]], position))
            position += 1
    return found
