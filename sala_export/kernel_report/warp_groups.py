"""Registers that an asynchronous product of a warp group still reads when something else is written into them.

`HGMMA`, the instruction of `wgmma` on SM90, returns before it has read its operands. Operand A may lie in four
registers of each thread, which must keep their values until the wait that completes the product. Two compilers broke
that: ptxas 12.9 reuses the registers too early (triton-lang/triton pull request 11781; NVIDIA: fixed in CUDA 13.3), and
Triton fills those of a loop's next turn while `wait_group` leaves a product in flight (triton-lang/triton issue 9433).
Both give wrong products now and then, which no test can be trusted to see; this reads the code instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BuildError

LABEL = re.compile(r"^\s*(\.L_\w+):")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;")
_PARTS = re.compile(r"(?P<predicate>@!?U?P\w+\s+)?(?P<name>[\w.]+)\s*(?P<operands>.*)")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_REGISTER = re.compile(r"R(\d+)\b")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)")
_A_REGISTERS = 4
_MOST_COMMITS = 8
"""`wait_group` leaves fewer products in flight."""
_NO_RESULT = re.compile(r"(\w+SETP|FCHK|R2P|R2UR|R2B|PLOP3|ST\w*|RED|BAR|BRX|JMX|WARPSYNC|NANOSLEEP)\b")
"""Instructions whose first register, if any, is an operand."""
_ENDS = re.compile(r"(BRX|JMX|JMP|CALL|RET)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Code:
    instructions: Sequence[str]
    labels: Mapping[str, int]

    def followers(self, position: int) -> Iterator[int]:
        """Where the program may go on after an instruction: predicates count as both true and false."""
        parts = _parts(self.instructions[position])
        targets = _TARGET.findall(parts["operands"])
        if parts["name"] == "BSYNC":  # Threads that were apart meet where its BSSY says.
            meets = f"BSSY {parts['operands']}, "
            targets = [t for other in self.instructions if meets in other for t in _TARGET.findall(other)]
        yield from (self.labels[target] for target in targets if target in self.labels)
        always_leaves = parts["name"] == "EXIT" or (parts["name"] == "BRA" and parts["operands"].startswith("`"))
        if parts["predicate"] or not always_leaves:
            yield position + 1


def register_operands(assembly: str) -> int:
    """How many `HGMMA` in the output of `nvdisasm -c` have operand A in registers."""
    return sum(_operand_a(instruction) is not None for instruction in _code(assembly).instructions)


def overwritten_operands(assembly: str) -> tuple[str, ...]:
    """Instructions of `nvdisasm -c` that may write an A register of a product in flight, each with that product.

    Every path is followed from each product to the wait that completes it, back edges of loops included.
    """
    code = _code(assembly)
    return tuple(
        f"{code.instructions[writer]} while {product} is in flight"
        for position, product in enumerate(code.instructions)
        if (first := _operand_a(product)) is not None
        for writer in sorted(_writers(code, position, set(range(first, first + _A_REGISTERS))))
    )


def _code(assembly: str) -> _Code:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.match(line):
            instructions.append(instruction[1])
    return _Code(instructions=instructions, labels=labels)


def _parts(instruction: str) -> Mapping[str, str]:
    match = _PARTS.match(instruction)
    if match is None:
        raise BuildError(f"nvdisasm tells what is no instruction: {instruction}")
    return match.groupdict(default="")


def _operand_a(instruction: str) -> int | None:
    """The first register of operand A, if the instruction is an `HGMMA` that has it in registers."""
    parts = _parts(instruction)
    operands = parts["operands"].split(", ")
    register = _REGISTER.match(operands[1]) if parts["name"].startswith("HGMMA.") and len(operands) > 1 else None
    return int(register[1]) if register else None


def _writers(code: _Code, product: int, registers: set[int]) -> set[int]:
    """Positions on the way from `product` to its wait that write one of `registers`, or lead where none can follow."""
    found: set[int] = set()
    commits = int(_commits(code.instructions[product]))
    open_ways = [(follower, commits) for follower in code.followers(product)]
    seen: set[tuple[int, int]] = set()
    while open_ways:
        way = open_ways.pop()
        position, commits = way
        if way in seen or position >= len(code.instructions):
            continue
        seen.add(way)
        instruction = code.instructions[position]
        wait = _WAIT.match(instruction)
        # Of the commits since the product its own is the first: a wait leaves the latest in flight.
        if wait and commits > int(wait[1], 16):
            continue
        if _written(instruction) & registers or _ENDS.match(_parts(instruction)["name"]):
            found.add(position)
        commits = min(commits + _commits(instruction), _MOST_COMMITS)
        open_ways += [(follower, commits) for follower in code.followers(position)]
    return found


def _commits(instruction: str) -> bool:
    return "HGMMA." in instruction and instruction.endswith("gsb0")


def _written(instruction: str) -> set[int]:
    """Registers that an instruction writes."""
    parts = _parts(instruction)
    if _NO_RESULT.match(parts["name"]):
        return set()
    results = [operand for operand in parts["operands"].split(", ") if not re.match(r"!?U?P(T|\d)", operand)]
    register = _REGISTER.match(results[0]) if results else None
    return set(range(int(register[1]), int(register[1]) + _width(parts["name"]))) if register else set()


def _width(name: str) -> int:
    """Registers of a result, by the instruction's name and modifiers."""
    if shape := re.match(r"HGMMA\.64x(\d+)x\d+\.(F16)?", name):
        return int(shape[1]) // (4 if shape[2] else 2)
    if re.match(r"(HMMA|IMMA|QMMA|DMMA)\.", name) or ".128" in name or ".M88.4" in name or ".MT88.4" in name:
        return 4
    has_pair = re.search(r"\.(64|WIDE|M88\.2|MT88\.2|S64|U64|F64)\b", name)
    return 2 if has_pair or re.match(r"D(ADD|MUL|FMA|MNMX)|CS2R$", name) else 1
