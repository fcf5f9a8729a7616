"""Reads out of a cubin what its kernel needs and holds. A cubin is an ELF file, so no tool of NVIDIA is needed.

Registers and stack stand in the section `.nv.info`, shared memory in `.nv.shared.KERNEL`, instructions of 16 bytes in
`.text.KERNEL`. An instruction's lowest 9 bits say what it does. `tests/kernel_report/` compares all of it with what
`cuobjdump` and `nvdisasm` print of the shipped kernels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BuildError

_CUDA_MACHINE = 190
"""`e_machine` of the ELF header."""
_NO_BITS = 8
"""`sh_type` of a section that takes no room in the file."""
_TEXT, _SHARED, _INFO = ".text.", ".nv.shared.", ".nv.info"
_WITH_SIZE = 4
"""Format of an entry of `.nv.info` whose value has a size; all others are of 4 bytes."""
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
"""Attributes of an entry of `.nv.info`."""
_INSTRUCTION_BYTES = 16
_KIND = 0x1FF
_TENSOR_CORE, _INTEGER, _BLOCK_SCALED, _WARP_GROUP = 0x03C, 0x037, 0x07A, 0x1F0
"""`HMMA`, `IMMA`, `QMMA` and `HGMMA`."""
_LOCAL_MEMORY = (0x183, 0x187)
"""`LDL` and `STL`."""
_BRANCH = 0x147
"""`BRA`. Its target is an offset from the next instruction."""
_FIRST_SHORT_OFFSET = 90
"""From this architecture on, the offset of a branch is stored in units of 4 bytes and in two parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CubinFacts:
    """Facts about a cubin: registers, stack and spills of a thread, and the static shared memory of a block."""

    registers: int
    stack_bytes: int
    static_shared_bytes: int
    spill_instructions: int
    """Number of loads and stores of local memory."""
    tensor_core_instructions: int
    """`HMMA.16816`, `QMMA.SF.16832` and `HGMMA` of a main loop, per warp and turn; 0 without one.

    Main loops are those with the most of them, of the loops that contain no other loop with any.
    """
    loop_instructions: tuple[int, ...]
    """All instructions of each main loop, per warp and turn, in the order of the code."""
    int8_instructions: int
    """`IMMA.16832` of the int8 loop, which is found as main loops are."""
    int8_loop_instructions: tuple[int, ...]
    """All instructions of each of those."""
    uses_warp_groups: bool
    """The main loop has `HGMMA`, whose one instruction serves four warps and any number of columns."""


def read_cubin(cubin: bytes, sm: int) -> CubinFacts:
    """Read the facts about the only kernel of a cubin for architecture `sm`, 90 for example.

    Raises: BuildError for bytes that are no such cubin.
    """
    try:
        sections = _sections(cubin)
        (name,) = [name.removeprefix(_TEXT) for name in sections if name.startswith(_TEXT)]
        values = _info(sections[_INFO])
        words = np.frombuffer(sections[_TEXT + name], "<u8").reshape(-1, _INSTRUCTION_BYTES // 8)
        registers, stack_bytes = values[_REGISTERS], values[_FRAME_SIZE]
    except (struct.error, ValueError, KeyError, IndexError):
        raise BuildError("a kernel of the plugin library is no cubin: install the package again") from None
    kinds = words[:, 0] & _KIND
    loops = list(_loops(words, sm))
    products, bodies = _main_loops(loops, np.isin(kinds, (_TENSOR_CORE, _BLOCK_SCALED, _WARP_GROUP)))
    int8_products, int8_bodies = _main_loops(loops, kinds == _INTEGER)
    return CubinFacts(
        registers=registers,
        stack_bytes=stack_bytes,
        static_shared_bytes=len(sections.get(_SHARED + name, b"")),
        spill_instructions=int(np.isin(kinds, _LOCAL_MEMORY).sum()),
        tensor_core_instructions=products,
        loop_instructions=tuple(last - first for first, last in bodies),
        int8_instructions=int8_products,
        int8_loop_instructions=tuple(last - first for first, last in int8_bodies),
        uses_warp_groups=any((kinds[slice(*body)] == _WARP_GROUP).any() for body in bodies[:1]),
    )


def _sections(cubin: bytes) -> Mapping[str, bytes]:
    """Contents of the sections of an ELF file by name; zeros for a section that takes no room in the file."""
    if cubin[:6] != b"\x7fELF\2\1" or struct.unpack_from("<H", cubin, 18) != (_CUDA_MACHINE,):
        raise ValueError("no 64-bit ELF file of little endian for a GPU")
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names_at = struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + number * size) for number in range(count)]
    names = cubin[headers[names_at][4] :]
    return {
        names[start : names.index(b"\0", start)].decode("ascii"): (
            bytes(length) if kind == _NO_BITS else cubin[offset : offset + length]
        )
        for start, kind, _, _, offset, length in headers
    }


def _info(section: bytes) -> Mapping[int, int]:
    """The last four bytes of each attribute with a size: the value, behind the number of the kernel's symbol."""
    values, position = {}, 0
    while position < len(section):
        kind, attribute, size = struct.unpack_from("<BBH", section, position)
        position += 4
        if kind == _WITH_SIZE:
            position += size
            if size == 8:
                (values[attribute],) = struct.unpack_from("<I", section, position - 4)
    return values


def _loops(words: NDArray[np.uint64], sm: int) -> Iterator[tuple[int, int]]:
    """Every loop, as the range of instructions from where a branch goes back to, up to that branch."""
    for position in np.flatnonzero((words[:, 0] & _KIND) == _BRANCH).tolist():
        low, high = map(int, words[position])
        if sm >= _FIRST_SHORT_OFFSET:
            offset = _signed((low >> 16 & 0xFF) | (low >> 34) << 8 | (high & 0x3FFFF) << 38, 56) * 4
        else:
            offset = _signed(low >> 32 | (high & 0x3FFFF) << 32, 50)
        target = position + 1 + offset // _INSTRUCTION_BYTES
        if 0 <= target <= position:
            yield target, position + 1


def _main_loops(loops: Sequence[tuple[int, int]], is_product: NDArray[np.bool_]) -> tuple[int, list[tuple[int, int]]]:
    """Of loops, ranges of instructions, those with the most products that contain no other with any; and how many."""
    with_products = [loop for loop in loops if is_product[slice(*loop)].any()]

    def holds_another(first: int, last: int) -> bool:
        return any(first <= inner and end <= last and (inner, end) != (first, last) for inner, end in with_products)

    counts = {loop: int(is_product[slice(*loop)].sum()) for loop in with_products if not holds_another(*loop)}
    most = max(counts.values(), default=0)
    return most, sorted(loop for loop, count in counts.items() if count == most)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
