"""One call of `benchmarks/kernels.py`: launches, operator and peer, timed and set beside the least that they take."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu_machine import CaseFailure, one_line
from benchmarks.kernel_cases import SPARSE, Case, make_inputs
from benchmarks.kernel_peers import make_peer, peer_bytes, peer_name
from benchmarks.kernel_timing import Step, Timer, Times, alternate
from benchmarks.kernel_ways import Way, bind
from sala_export.engine.recipe import GpuRecipe
from sala_export.ops.common.cost import KernelCost
from sala_export.ops.common.targets import require_architecture
from sala_export.specs import DType, format_bytes

OPERATOR = "operator"
"""Name of the row of all launches together, as a stream runs them."""
OPERATOR_GRAPH = "operator in a CUDA graph"
MARGIN_BYTES = 2 << 30
"""Device memory that is left to torch, Triton and what runs beside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the results."""

    case: str
    dtype: str
    what: str
    """`OPERATOR`, `OPERATOR_GRAPH`, the name of a kernel, or that of the peer."""
    seconds: float
    """Median."""
    spread: float
    rounds: int
    floor_seconds: float | None
    """The least of any implementation at this GPU's rates; for an operator and its peer."""
    roofline_seconds: float | None
    """The least for what our launches move and compute."""

    @property
    def of_floor(self) -> float | None:
        """1 is as fast as the GPU allows."""
        return self.floor_seconds / self.seconds if self.floor_seconds else None

    @property
    def of_roofline(self) -> float | None:
        return self.roofline_seconds / self.seconds if self.roofline_seconds else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to measure."""

    rates: GpuRecipe
    rounds: int
    budget_seconds: float
    """For each comparison; long calls have fewer rounds."""
    way: Way = Way.JIT
    with_peers: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What came of one case."""

    rows: list[Row]
    peer_problem: str | None = None
    """Why the peer has no row, if it should have one."""


def least_seconds(cost: KernelCost, rates: GpuRecipe, dtype: DType) -> float:
    """Time of what a launch moves and computes at a GPU's peak rates, both at once."""
    precision = {DType.BFLOAT16: "bf16", DType.FLOAT16: "fp16"}[dtype]
    peaks = (rates.peak_tera_operations_per_second[type_] * 1e12 for type_ in (precision, "int8"))
    return cost.seconds(rates.memory_gigabytes_per_second * 1e9, *peaks)


def account(case: Case, dtype: DType, sm: int) -> tuple[Sequence[KernelCost], KernelCost]:
    """What each launch of one call moves and computes on an architecture, and the least of any implementation."""
    module = importlib.import_module(f"sala_export.ops.{case.operator}.cost")
    sizes = {"batch": case.batch, "tokens": case.tokens, "past_length": case.past_length}
    sizes["activation_bytes"] = dtype.bytes
    if case.operator == SPARSE:
        sizes["sm"] = sm
    return module.costs(case.attributes, **sizes), module.floor(case.attributes, **sizes)


def missing_memory(case: Case, dtype: DType, free_bytes: int) -> str | None:
    """Why a case does not fit the memory that is free, with sizes; None if it does."""
    needed = case.bytes(dtype) + peer_bytes(case, dtype) + MARGIN_BYTES
    if needed <= free_bytes:
        return None
    return f"needs {format_bytes(needed)} of device memory, {format_bytes(free_bytes)} are free"


def measure(case: Case, dtype: DType, device: torch.device, timer: Timer, settings: Settings) -> Measured:
    """The operator beside its peer in turns, the operator in a CUDA graph, and each launch.

    A peer that is not installed or fails is left out. Raises: `CaseFailure` errors if the operator fails.
    """
    inputs = make_inputs(case, getattr(torch, dtype.value), device)
    call = bind(settings.way, case.contract, case.kernel_set, inputs, case.attributes)
    call.run()  # compiles
    sides: dict[str, Sequence[Step]] = {OPERATOR: [_repeated(call.run, case.calls)]}
    peer, problem = _peer(case, inputs) if settings.with_peers else (None, None)
    if peer is not None:
        sides[peer_name(case)] = [_repeated(peer, case.calls)]
    sides[OPERATOR_GRAPH] = [_repeated(timer.captured(call.run), case.calls)]
    if case.calls == 1:
        sides["launches"] = [launch.run for launch in call.launches]
    times = alternate(timer, sides, rounds=settings.rounds, budget_seconds=settings.budget_seconds)
    names = [launch.launch.name for launch in call.launches]
    found = rows(case, dtype, times, names, settings.rates, settings.way)
    return Measured(rows=found, peer_problem=problem)


def _peer(case: Case, inputs: Sequence[torch.Tensor]) -> tuple[Step | None, str | None]:
    """The peer after its first call, which compiles it and lets fla choose its tiles; or why there is none."""
    try:
        peer = make_peer(case, inputs)
        peer()
    except (ImportError, *CaseFailure) as error:
        return None, one_line(error)
    return peer, None


def rows(
    case: Case,
    dtype: DType,
    times: Mapping[str, Sequence[Times]],
    launches: Sequence[str],
    rates: GpuRecipe,
    way: Way = Way.JIT,
) -> list[Row]:
    """Times beside the floor and the roofline; `times["launches"]` has one entry for each of `launches`.

    There is a row for the peer if `times` has one.
    """
    costs, floor = account(case, dtype, way.sm or require_architecture(rates.compute_capability))
    by_kernel = {cost.kernel: least_seconds(cost, rates, dtype) for cost in costs}
    if list(by_kernel) != list(launches):
        raise ValueError(f"{case.name}: cost.py accounts for {list(by_kernel)}, launched are {list(launches)}")

    def row(what: str, found: Times, floor_seconds: float | None, roofline_seconds: float | None) -> Row:
        return Row(
            case=case.name,
            dtype=dtype.value,
            what=what,
            seconds=found.median,
            spread=found.spread,
            rounds=len(found.seconds),
            floor_seconds=floor_seconds,
            roofline_seconds=roofline_seconds,
        )

    floor_seconds = case.calls * least_seconds(floor, rates, dtype)
    roofline = case.calls * sum(by_kernel.values())
    peer = peer_name(case)
    # A dense peer computes something else, so that the floor of ours says nothing of it.
    floors = {OPERATOR: floor_seconds, OPERATOR_GRAPH: floor_seconds}
    found = [
        row(what, times[what][0], floors.get(what), roofline if what in floors else None)
        for what in (OPERATOR, OPERATOR_GRAPH, peer)
        if what in times
    ]
    of_launches = times.get("launches", ())
    timed_launches = zip(launches, of_launches, strict=True) if of_launches else ()
    return found + [row(name, one, None, by_kernel[name]) for name, one in timed_launches]


def _repeated(step: Step, count: int) -> Step:
    def run() -> None:
        for _ in range(count):
            step()

    return run if count > 1 else step
