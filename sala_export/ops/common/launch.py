"""How an operator's kernels are launched, as data that Python interprets and `plugins/aot` turns into C++.

A launch names a Triton kernel and its grid. Its arguments follow from the kernel's own parameter names:

* `<tensor>_ptr` is the buffer of that name: an input, an output, a workspace or a counter of the operator. An output
  that updates an input has no buffer of its own; kernels take the input's. Buffers are contiguous and start at a
  multiple of 16 bytes, which a compiler may be told.
* a `tl.constexpr` parameter is fixed at compile time: by the `Tile` of the architecture, by `KernelSet.constants`, or
  as one of `KernelSet.variant_attributes`;
* any other parameter is the dimension, integer attribute or float attribute of that name, passed as int32 or float32.
  A compiler must not specialise on its value.

Grids and workspace shapes are expressions (`expr.py`) over dimensions, integer attributes and `KernelSet.constants`,
never over positions, so that a captured CUDA graph serves every step of a sequence. Grids may also name the tile's
constants. Workspace shapes may not: TensorRT asks for their size before it knows the GPU.

**Dependent launches.** Where the architecture lets it, a `Launch.dependent` begins before the launch before it in the
stream has ended, which hides the time that a kernel takes to start. Its kernel takes the constant `DEPENDENT`, 1 where
that is so and 0 elsewhere, and hands it to the functions of `dependent.py`:

* `let_next_launch_begin`, first of all, if the launch after it in the sequence is dependent. That one begins when all
  programs of this one have come here or ended. It takes no room from them, because all of them run by then. The last
  launch of a sequence calls nothing: the kernel after it is not ours.
* `wait_for_earlier_launches`, next. Every program calls it, also one that has nothing to do, and touches no device
  memory before it. It returns when the launch before has ended and all that it wrote can be read. That launch ended
  only after its own wait had returned, and so on back: all launches before have ended. So what a program writes after
  its wait cannot reach an earlier launch that still reads the old value either.

The first launch of a sequence follows a kernel of TensorRT or torch, which was launched as usual or waits as these do.
Such a kernel hardly ever lets another one begin early. Then the launch begins when the programs of that kernel have
ended, and waits until what they wrote can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...specs import DType, TensorSpec
from .contract import ACTIVATION, Rule
from .expr import evaluate, identifiers
from .targets import ARCHITECTURES

DEPENDENT = "DEPENDENT"
"""Name of the constant that tells a kernel whether its launch is dependent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Scratch buffer of one call; contents are undefined on entry."""

    name: str
    dtype: str
    """`X` or a concrete type name."""
    shape: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """What one architecture chooses for a launch: sizes of its tiles, warps of a block, stages of its pipelines.

    Raises: ValueError for a number of warps that is no power of two up to 32, or no stage.
    """

    constexprs: Mapping[str, int] = field(default_factory=dict)
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        if self.num_warps not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"{self.num_warps} warps: a block has a power of two up to 32")
        if self.num_stages < 1:
            raise ValueError(f"{self.num_stages} stages: a loop has at least 1")


OPERANDS = ("X", "mxf8", "int8", "tf32", "float32")
"""How a product is computed: by tensor-core instructions of 16 bits, MXFP8, int8 or TF32, or without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One `tl.dot` or `tl.dot_scaled` of a kernel's main loop, [m, k] times [k, n].

    The sizes are expressions (`expr.py`) over the tile's constants, `KernelSet.constants` and the variant attributes.
    What a compiler must emit for it follows in closed form: `sala_export/kernel_report/tensor_cores.py`.
    """

    m: str
    n: str
    k: str
    operand: str = "X"
    """One of `OPERANDS`."""
    feeds_product: bool = False
    """A later product of the turn takes its result, as an operand or as the sum that it adds to."""

    def __post_init__(self) -> None:
        if self.operand not in OPERANDS:
            raise ValueError(f"product of {self.operand}: expected one of {', '.join(OPERANDS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One kernel launch of a sequence; launches of a sequence run in order on one stream.

    Raises: ValueError naming the kernel if there is no tile, or if tiles set different constants.
    """

    kernel: Callable[..., Any]
    """The `@triton.jit` function; its name is the kernel's name everywhere."""
    grid: tuple[str, str, str]
    tiles: Mapping[int, Tile]
    """Tiles by architecture, 10 * major + minor."""
    dependent: bool = False
    """The launch begins before the one before it has ended, where the architecture lets it."""
    main_loop: tuple[Product, ...] = ()
    """The products of one turn of the innermost loop that has any; empty for a kernel without tensor-core products.

    Those of int8 have a loop of their own beside it.
    """

    def __post_init__(self) -> None:
        if len({frozenset(tile.constexprs) for tile in self.tiles.values()}) != 1:
            raise ValueError(f"{self.name}: its tiles set different constants, or there are none")

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def tile_constants(self) -> frozenset[str]:
        """Names that every tile sets."""
        return frozenset(next(iter(self.tiles.values())).constexprs)

    def is_dependent(self, sm: int) -> bool:
        """True if it begins before the launch before it has ended, on this architecture."""
        return self.dependent and ARCHITECTURES[sm].has_dependent_launches


HEAD_DIMS = (
    Rule(
        left="head_dim",
        relation=">=",
        right="32",
        doc="smaller tiles have fewer elements than threads, which then race where they write over what they read",
    ),
    Rule(left="fdiv(128, head_dim) * head_dim", relation="==", right="128", doc="head_dim is 32, 64 or 128"),
)
"""Rules of kernels whose tiles are `head_dim` wide: what tests compile, and no other size."""


def same_tile(tile: Tile, architectures: Collection[int] = tuple(ARCHITECTURES)) -> dict[int, Tile]:
    """`Launch.tiles` that are alike on every architecture."""
    return dict.fromkeys(architectures, tile)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSet:
    """All launches of one operator.

    Raises: ValueError naming the kernel if one of `architectures` has no tile or another one has, or if a tile sets a
        constant or variant attribute of the set, or if a product of a main loop names anything else than the tile's
        constants and those, or if a launch is dependent and its kernel does not take `DEPENDENT`; or naming a counter
        that is not int32.
    """

    workspaces: tuple[Workspace, ...]
    prefill: tuple[Launch, ...]
    """Serves any T."""
    decode: tuple[Launch, ...]
    """Serves T == 1 only."""
    variant_attributes: tuple[str, ...]
    """Integer attributes that are compile-time constants of the kernels, by name; also `constexpr` parameters."""
    aot_variants: tuple[Mapping[str, int], ...]
    """The values of `variant_attributes` that cubins are shipped for; others are refused when an engine is built."""
    aot_dtypes: tuple[str, ...]
    """Activation types that cubins are shipped for."""
    rules: tuple[Rule, ...] = ()
    """What the kernels need of the integer attributes beyond the operator's contract."""
    constants: Mapping[str, int] = field(default_factory=dict)
    """Compile-time numbers common to all launches and tiles, passed to the kernels that name them as `constexpr`."""
    float32_head_dim: Mapping[int, int] = field(default_factory=dict)
    """The largest head_dim in float32, by architecture: shared memory holds the tiles of no larger one."""
    counters: tuple[Workspace, ...] = ()
    """Small int32 buffers that are zero before the first call, and that each call leaves zero again.

    Their shapes are expressions over B, integer attributes and constants. Whoever makes an instance of the operator
    owns them for as long as it lives. Calls that may run at the same time have counters of their own.
    """
    architectures: Collection[int] = tuple(ARCHITECTURES)
    """Those of `ARCHITECTURES` that the kernels exist for: all, unless they need instructions that some lack."""

    def __post_init__(self) -> None:
        if wrong := [counter.name for counter in self.counters if counter.dtype != "int32"]:
            raise ValueError(f"counters are int32: {', '.join(wrong)}")
        common = self.constants.keys() | set(self.variant_attributes) | {DEPENDENT}
        for launch in self.launches:
            if wrong_sms := launch.tiles.keys() ^ set(self.architectures):
                raise ValueError(f"{launch.name}: tiles are missing, or not wanted, for {_architectures(wrong_sms)}")
            if twice := launch.tile_constants & common:
                raise ValueError(f"{launch.name}: tiles set {', '.join(sorted(twice))}, which the whole set has")
            if launch.dependent and DEPENDENT not in launch.kernel.arg_names:  # type: ignore[attr-defined]
                raise ValueError(f"{launch.name}: a dependent launch needs a kernel that takes {DEPENDENT}, and waits")
            sizes = {name for p in launch.main_loop for text in (p.m, p.n, p.k) for name in identifiers(text)}
            if unknown := sizes - common - launch.tile_constants:
                raise ValueError(f"{launch.name}: products of unknown size {', '.join(sorted(unknown))}")

    @property
    def launches(self) -> tuple[Launch, ...]:
        """Launches of both sequences."""
        return (*self.prefill, *self.decode)

    @property
    def only_architectures(self) -> tuple[int, ...]:
        """`architectures`, or none if they are all."""
        return () if set(self.architectures) == set(ARCHITECTURES) else tuple(self.architectures)

    def served(self, architectures: Collection[int]) -> tuple[int, ...]:
        """Those of some architectures that the kernels exist for, in their order."""
        return tuple(sm for sm in architectures if sm in self.architectures)

    def workspace_specs(self, sizes: Mapping[str, int], activation: DType) -> tuple[TensorSpec, ...]:
        """The workspaces of a call, for its dimensions and integer attributes by name."""
        names = {**self.constants, **sizes}
        return tuple(
            TensorSpec(
                workspace.name,
                activation if workspace.dtype == ACTIVATION else DType(workspace.dtype),
                tuple(evaluate(extent, names) for extent in workspace.shape),
            )
            for workspace in self.workspaces
        )

    def compile_time(self, launch: Launch, sm: int, variant: Mapping[str, int]) -> dict[str, int]:
        """Every number that is fixed when `launch` is compiled for an architecture and a variant, by name."""
        return {
            **self.constants,
            **launch.tiles[sm].constexprs,
            **{n: variant[n] for n in self.variant_attributes},
            DEPENDENT: int(launch.is_dependent(sm)),
        }


def unsupported_reason(kernel_set: KernelSet, attributes: Mapping[str, int | float], dtype: str) -> str | None:
    """Why the shipped cubins cannot serve an operator with these attributes, naming the one at fault; None if they can.

    Args: all attributes of the operator by name; `dtype` its activation type, as in `specs.DType`.
    """
    if dtype not in kernel_set.aot_dtypes:
        return f"activations are {dtype}, kernels exist for {', '.join(kernel_set.aot_dtypes)}"
    variant = {name: int(attributes[name]) for name in kernel_set.variant_attributes}
    if variant not in [dict(v) for v in kernel_set.aot_variants]:
        return f"{_assignments(variant)}: kernels exist for {'; '.join(map(_assignments, kernel_set.aot_variants))}"
    return broken_rule(kernel_set, attributes)


def unlaunchable_reason(
    kernel_set: KernelSet, attributes: Mapping[str, int | float], dtype: str, sm: int
) -> str | None:
    """Why the kernels cannot serve an operator where Python launches them; None if they can.

    Args: as `unsupported_reason`; `sm`, the architecture whose tiles are taken.
    """
    if reason := unserved_reason(kernel_set, attributes, sm):
        return reason
    largest = kernel_set.float32_head_dim.get(sm) if dtype == "float32" else None
    if largest is not None and attributes["head_dim"] > largest:
        return (
            f"head_dim is {attributes['head_dim']}, in float32 the shared memory of SM{sm} holds the tiles of "
            f"{largest} at most: choose bf16 or fp16"
        )
    return None


def unserved_reason(kernel_set: KernelSet, attributes: Mapping[str, int | float], sm: int) -> str | None:
    """Why no kernel serves an operator with these attributes on an architecture, whatever its room; None if one does.

    Args: as `unlaunchable_reason`.
    """
    if sm not in kernel_set.architectures:
        return f"no kernels for SM{sm}, they exist for {_architectures(kernel_set.architectures)}"
    return broken_rule(kernel_set, attributes)


def broken_rule(kernel_set: KernelSet, attributes: Mapping[str, int | float]) -> str | None:
    """The first of the kernels' rules that the attributes break, with its values; None if they keep all."""
    integers = {name: value for name, value in attributes.items() if isinstance(value, int)}
    for rule in kernel_set.rules:
        if not rule.holds(integers):
            left, right = evaluate(rule.left, integers), evaluate(rule.right, integers)
            return f"{rule.left} is {left}, kernels need {rule.relation} {right}: {rule.doc}"
    return None


def _architectures(sms: Collection[int]) -> str:
    return ", ".join(f"SM{sm}" for sm in sorted(sms))


def _assignments(variant: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in variant.items())
