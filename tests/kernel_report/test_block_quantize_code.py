"""The code of the kernels that quantise rows, whose time is that of their bytes: how wide loads and stores are."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from plugins.aot.kernels import compile_job, compile_kernel
from sala_export.kernel_report.cubin import read_cubin
from sala_export.kernel_report.disassembly import disassemble
from sala_export.ops.block_quantize.schema import CONTRACT as BLOCK_QUANTIZE
from sala_export.ops.common.contract import Contract
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.rms_norm_block_quantize.schema import CONTRACT as RMS_NORM_BLOCK_QUANTIZE

SM = 120
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)", re.MULTILINE)


@pytest.mark.parametrize(
    ("contract", "variant", "loads", "pieces", "instructions"),
    [
        (BLOCK_QUANTIZE, {"gated": 0}, 2, 1, 180),
        (BLOCK_QUANTIZE, {"gated": 1}, 4, 1, 480),
        # Row and weight of the first piece, the row of each further one, and once more with the weight.
        (RMS_NORM_BLOCK_QUANTIZE, {}, 4 + 2 + 4, 2, 600),
    ],
    ids=["plain", "gated", "norm"],
)
def test_threads_move_16_bytes_at_once_and_convert_pairs(
    contract: Contract, variant: dict[str, int], loads: int, pieces: int, instructions: int
) -> None:
    """A thread has 16 numbers: each operand is two loads, codes are one store, made by eight conversions."""
    kernel_set = KERNEL_SETS[contract.name]
    (launch,) = kernel_set.prefill
    job = compile_job(contract, kernel_set, launch, activation="bfloat16", variant=variant, sm=SM)
    cubin = compile_kernel(job).cubin
    found = Counter(INSTRUCTION.findall(disassemble(cubin)))
    moved = {name: count for name, count in found.items() if name.startswith(("LDG", "STG"))}
    # The other stores are those of words of scales.
    assert moved == {"LDG.E.128": loads, "STG.E.128": pieces, "STG.E": pieces}
    assert sum(count for name, count in found.items() if name.startswith("F2FP.SATFINITE.E4M3")) == 8 * pieces
    # Scaling small numbers up must not lose them.
    assert not [name for name in found if name.startswith("FMUL") and "FTZ" in name]
    assert sum(found.values()) - found["NOP"] <= instructions
    facts = read_cubin(cubin, SM)
    assert (facts.stack_bytes, facts.spill_instructions) == (0, 0)
    # Four blocks of 256 threads, or eight of 128, have room on a multiprocessor.
    assert facts.registers <= 64
