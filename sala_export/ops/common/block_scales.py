"""What the contracts of the block-scaled operators say alike. Importing this imports neither torch nor triton."""

from __future__ import annotations

from .contract import Rule

SCALES_DOC = (
    "Scales as e8m0 bytes, 2^(byte - 127): a word holds those of 128 neighbours of a row, "
    "32 by 32 from its low bits up."
)

BLOCK_SCALED_ARCHITECTURES = (120, 121)
"""Those of `targets.ARCHITECTURES` that there are kernels of MXFP8 for: they have the block-scaled `mma.sync`. SM110
multiplies such operands too, by other instructions, for which there are no tiles."""


def block_rules(columns: str) -> tuple[Rule, ...]:
    """Rules of rows of so many numbers, by the name of that number, and of their tokens."""
    return (
        Rule(left="T", relation=">=", right="1", doc="a chunk holds at least one token"),
        Rule(left=columns, relation=">=", right="128", doc="there is at least one word of scales"),
        Rule(
            left=f"128 * fdiv({columns}, 128)",
            relation="==",
            right=columns,
            doc="a word holds the scales of 128 neighbours",
        ),
    )


def quantized_bytes(columns: int) -> int:
    """Bytes of the codes and scales of a row of so many numbers."""
    return columns + columns // 32
