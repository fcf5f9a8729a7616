"""Tiles that a kernel updates in place while more threads hold them than they have elements: a race.

Where a tile has fewer elements than a block has threads, several threads load one element, and one of them stores it.
If that is where it came from, a late thread loads what the early one has stored: it adds a second time. Triton sees no
harm in it. What is read here is Triton's last form that names tiles (TTGIR), as text of versions 3.6 to 3.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BuildError

_LAYOUT = re.compile(r"^(#\w+) = (#ttg\.\w+<.*>)$", re.MULTILINE)
_FUNCTION = re.compile(r"tt\.func public @\w+\((.*)\) attributes")
_POINTER_ARGUMENT = re.compile(r"%(\w+): !tt\.ptr<")
_RESULT = re.compile(r"\s*(%\w+)(?::\d+)? = ")
_VALUE = re.compile(r"%\w+")
_COUNTER = re.compile(r"scf\.for (%\w+) = ")
_ITERATED = re.compile(r"(%\w+) = (%\w+)")
_ACCESS = re.compile(r"\b(tt\.load|tt\.store|ttg\.async_copy_global_to_local) (%\w+)")
_TILE = re.compile(r"tensor<([\dx]+)x!tt\.ptr<[^>]*>, (#.*)")

Basis = tuple[int, ...]
"""How far one bit of a thread's number moves its elements, along each axis of the tile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """A load or store of global memory; a scalar is a tile without axes."""

    is_store: bool
    arguments: frozenset[str]
    """The pointers among the kernel's arguments that the address comes from."""
    shape: tuple[int, ...]
    threads: tuple[Basis, ...]
    """Bases of lanes and warps. A scalar is loaded by all threads."""

    @property
    def has_copies(self) -> bool:
        """More than one thread holds an element."""
        return not self.shape or any(
            all(step == 0 or step >= extent for step, extent in zip(basis, self.shape, strict=True))
            for basis in self.threads
        )


def racing_tiles(ttgir: str) -> tuple[str, ...]:
    """Pointer arguments that are both loaded and stored, by a tile of whose elements threads hold copies.

    Whether the addresses are the same is not asked: an argument is in place as a whole.

    Raises: BuildError for text that is not understood.
    """
    found = accesses(ttgir)
    loaded, stored = (
        {name for access in found if access.is_store == stores for name in access.arguments} for stores in (False, True)
    )
    return tuple(
        dict.fromkeys(
            f"{name}: {'store' if access.is_store else 'load'} of {'x'.join(map(str, access.shape)) or 'a scalar'}"
            for access in found
            if access.has_copies
            for name in sorted(access.arguments & loaded & stored)
        )
    )


def accesses(ttgir: str) -> tuple[Access, ...]:
    """All loads and stores of global memory of a kernel, in order. Raises: BuildError, as `racing_tiles`."""
    function = _FUNCTION.search(ttgir)
    if function is None:
        raise BuildError("TTGIR without a kernel")
    layouts = dict(_LAYOUT.findall(ttgir))
    origins = {f"%{name}": frozenset((name,)) for name in _POINTER_ARGUMENT.findall(function[1])}
    return tuple(_accesses(ttgir[function.end() :].splitlines(), origins, layouts))


def _accesses(lines: Sequence[str], origins: dict[str, frozenset[str]], layouts: Mapping[str, str]) -> Iterator[Access]:
    """Follows addresses from `origins`; a name that is taken again in another region is another value from there on."""
    for line in lines:
        if counter := _COUNTER.search(line):
            origins[counter[1]] = frozenset()
        for inner, outer in _ITERATED.findall(line.partition("iter_args(")[2]):
            origins[inner] = origins.get(outer, frozenset())
        if access := _ACCESS.search(line):
            yield _access(access[1] == "tt.store", origins.get(access[2], frozenset()), line, layouts)
        if result := _RESULT.match(line):
            # What is loaded is no address.
            values = () if access else _VALUE.findall(line[result.end() :])
            origins[result[1]] = frozenset().union(*(origins.get(value, frozenset()) for value in values))


def _access(is_store: bool, arguments: frozenset[str], line: str, layouts: Mapping[str, str]) -> Access:
    if not arguments:
        raise BuildError(f"TTGIR does not tell which argument is accessed: {line.strip()}")
    tile = _TILE.search(line)
    shape = tuple(map(int, tile[1].split("x"))) if tile else ()
    threads = tuple(_threads(tile[2], len(shape), layouts)) if tile else ()
    return Access(is_store=is_store, arguments=arguments, shape=shape, threads=threads)


def _threads(layout: str, axes: int, layouts: Mapping[str, str]) -> Iterator[Basis]:
    """One basis for each bit of a thread's number."""
    name = re.match(r"#\w+", layout)
    if name and name[0] in layouts:
        yield from _threads(layouts[name[0]], axes, layouts)
    elif sliced := re.match(r"#ttg\.slice<\{dim = (\d+), parent = (#.*)", layout):
        axis = int(sliced[1])
        for basis in _threads(sliced[2], axes + 1, layouts):
            yield basis[:axis] + basis[axis + 1 :]
    elif blocked := re.match(r"#ttg\.blocked<\{(.*)\}>", layout):
        first, lanes, warps = (_numbers(blocked[1], key) for key in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"))
        yield from _along_axes(first, [lane * warp for lane, warp in zip(lanes, warps, strict=True)])
    elif mma := re.match(r"#ttg\.nvidia_mma<\{versionMajor = [23], (.*)\}>", layout):
        # Four lanes beside each other hold two columns each, eight below each other a row; warps follow.
        yield from _along_axes((1, 2), (8, 4))
        yield from _along_axes(_numbers(mma[1], "instrShape")[:2], _numbers(mma[1], "warpsPerCTA"))
    elif linear := re.match(r"#ttg\.linear<\{.*?lane = \[(.*?)\], warp = \[(.*?)\], block", layout):
        for bases in linear.groups():
            yield from (tuple(map(int, basis.split(","))) for basis in re.findall(r"\[([\d, ]+)\]", bases))
    else:
        raise BuildError(f"TTGIR has a layout that is not known here: {layout}")


def _along_axes(first: Sequence[int], counts: Sequence[int]) -> Iterator[Basis]:
    """Of `counts` threads along each axis, a power of two, each `first` elements after the one before."""
    for axis, (step, count) in enumerate(zip(first, counts, strict=True)):
        for bit in range(count.bit_length() - 1):
            yield tuple(step << bit if axis == other else 0 for other in range(len(first)))


def _numbers(text: str, key: str) -> list[int]:
    found = re.search(rf"{key} = \[([\d, ]+)\]", text)
    if found is None:
        raise BuildError(f"TTGIR has a layout without {key}: {text}")
    return [int(number) for number in found[1].split(",")]
