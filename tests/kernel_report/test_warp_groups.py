"""What is found in assembly where registers of a product in flight are overwritten: in real code, and in every form."""

from __future__ import annotations

import re

import pytest

from sala_export.installation import plugin_library
from sala_export.kernel_report.disassembly import disassemble
from sala_export.kernel_report.shipped import shipped_kernels
from sala_export.kernel_report.warp_groups import overwritten_operands, register_operands


@pytest.fixture(scope="module")
def assembly() -> str:
    """Of attention on SM90, whose second product has operand A in registers."""
    kernels = shipped_kernels(plugin_library())
    return next(disassemble(k.cubin) for k in kernels if k.sm == 90 and k.kernel == "infllmv2_attend_kernel")


@pytest.mark.parametrize(
    ("planted", "is_fault"),
    [
        ("MOV R{a}, R0", True),
        ("@!P0 IADD3 R{last}, P1, R0, R2, RZ", True),
        ("LDS.128 R{before}, [R0]", True),
        ("SHFL.BFLY PT, R{a}, R0, 0x1, 0x1f", True),
        ("IMAD.WIDE R{before_last}, R0, 0x2, RZ", True),
        ("BRX R0 -0x10", True),
        ("MOV R{after}, R{a}", False),
        ("STS.128 [R0], R{a}", False),
        ("ISETP.GE.AND P0, PT, R{a}, R0, PT", False),
        ("LDS.64 R{before_pair}, [R0]", False),
    ],
)
def test_write_behind_a_product_is_found_in_real_code(assembly: str, planted: str, is_fault: bool) -> None:
    assert register_operands(assembly) > 0
    assert overwritten_operands(assembly) == ()
    lines = assembly.splitlines()
    products = [(int(m[1]), i) for i, line in enumerate(lines) if (m := re.search(r"HGMMA\S+ R\d+, R(\d+)", line))]
    # The registers before its own belong to no product.
    a, place = min(products)
    registers = {"before": a - 2, "before_pair": a - 2, "before_last": a - 1, "last": a + 3, "after": a + 4}
    instruction = planted.format(a=a, **registers)
    faulty = "\n".join(
        [*lines[: place + 1], f"        /*0000*/                   {instruction} ;", *lines[place + 1 :]]
    )
    found = overwritten_operands(faulty)
    assert bool(found) == is_fault, found
    assert all(text.startswith(f"{instruction} while HGMMA.") for text in found)


def listing(*instructions: str) -> str:
    return "\n".join(
        text if text.endswith(":") else f"        /*{16 * i:04x}*/                   {text} ;"
        for i, text in enumerate(instructions)
    )


PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR4], R24, gsb0"
OTHER_PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
WAIT_FOR_ALL, WAIT_FOR_ALL_BUT_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"
WRITE = "MOV R91, RZ"


@pytest.mark.parametrize(
    ("instructions", "is_fault"),
    [
        ((PRODUCT, WAIT_FOR_ALL, WRITE, "EXIT"), False),
        ((PRODUCT, WRITE, WAIT_FOR_ALL, "EXIT"), True),
        # A wait that leaves one product in flight leaves the last.
        ((PRODUCT, WAIT_FOR_ALL_BUT_ONE, WRITE, "EXIT"), True),
        ((PRODUCT, OTHER_PRODUCT, WAIT_FOR_ALL_BUT_ONE, WRITE, "EXIT"), False),
        # A product that is not committed yet belongs to the next that is.
        ((PRODUCT.removesuffix(", gsb0"), OTHER_PRODUCT, WAIT_FOR_ALL_BUT_ONE, WRITE, "EXIT"), True),
        ((PRODUCT.removesuffix(", gsb0"), WAIT_FOR_ALL, WRITE, "EXIT"), True),
        # The next turn of a loop fills the registers, without and with a wait before.
        ((".L_x_0:", WRITE, PRODUCT, WAIT_FOR_ALL_BUT_ONE, "@P0 BRA `(.L_x_0)", "EXIT"), True),
        ((".L_x_0:", WRITE, PRODUCT, WAIT_FOR_ALL, "@P0 BRA `(.L_x_0)", "EXIT"), False),
        # Where ways part, either counts; behind a branch that is always taken nothing does.
        ((PRODUCT, "@P0 BRA `(.L_x_1)", WAIT_FOR_ALL, "EXIT", ".L_x_1:", WRITE, "EXIT"), True),
        ((PRODUCT, "BRA `(.L_x_1)", WRITE, ".L_x_1:", WAIT_FOR_ALL, "EXIT"), False),
        (("BSSY B0, `(.L_x_2)", PRODUCT, "BSYNC B0", WAIT_FOR_ALL, "EXIT", ".L_x_2:", WRITE, "EXIT"), True),
        # Results of a product are written too.
        ((PRODUCT, "HGMMA.64x64x16.F32.BF16 R64, gdesc[UR8], R64, gsb0", WAIT_FOR_ALL, "EXIT"), True),
        ((PRODUCT.replace("R88", "gdesc[UR4]"), WRITE, WAIT_FOR_ALL, "EXIT"), False),
    ],
)
def test_products_are_followed_to_their_wait(instructions: tuple[str, ...], is_fault: bool) -> None:
    assert bool(overwritten_operands(listing(*instructions))) == is_fault
