"""Times of GPU work by CUDA events, from a cold L2 cache, the sides of a comparison in turns."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Step = Callable[[], object]

HEAD_START_SECONDS = 1e-3
"""Work that a GPU has before a measured step, so that the host is done launching when the step begins."""
WARM_UPS = 3
LEAST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds of one thing in all its rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range of the middle half of the rounds, relative to the median."""
        low, middle, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / middle


class Timer(Protocol):
    """What `measure` needs of a GPU."""

    def run(self, steps: Sequence[Step]) -> list[float]:
        """Seconds of each step; they follow each other."""
        ...

    def captured(self, step: Step) -> Step:
        """The same work as one CUDA graph."""
        ...


class GpuTimer:
    """CUDA events on the current stream of a device."""

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        # Written before each measurement: nothing that the last one used is left in the L2 cache.
        self._flush = torch.empty(max(4 * properties.L2_cache_size, 256 << 20), dtype=torch.uint8, device=device)
        self._flushes = 1
        self._flushes = math.ceil(HEAD_START_SECONDS / min(self.run([self._flush.zero_])[0] for _ in range(5)))

    def run(self, steps: Sequence[Step]) -> list[float]:
        """As `Timer.run`. An event stands between steps, which costs each about a microsecond."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
        for _ in range(self._flushes):
            self._flush.zero_()
        events[0].record()
        for step, event in zip(steps, events[1:], strict=True):
            step()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]

    def captured(self, step: Step) -> Step:
        """As `Timer.captured`. The step has to have run before, so that everything is compiled."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


def alternate(
    timer: Timer, sides: Mapping[str, Sequence[Step]], *, rounds: int, budget_seconds: float
) -> dict[str, list[Times]]:
    """Times of every step of every side, by its name; the sides take turns, and change their order each round.

    Where `rounds` rounds would take longer than `budget_seconds` there are fewer, but at least `LEAST_ROUNDS`.
    """
    once = 0.0
    for steps in sides.values():
        for _ in range(WARM_UPS):
            seconds = sum(timer.run(steps))
        once += seconds + 2 * HEAD_START_SECONDS
    rounds = max(LEAST_ROUNDS, min(rounds, int(budget_seconds / once)))
    found: dict[str, list[list[float]]] = {name: [[] for _ in steps] for name, steps in sides.items()}
    names = list(sides)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            for into, seconds in zip(found[name], timer.run(sides[name]), strict=True):
                into.append(seconds)
    return {name: [Times(seconds=tuple(seconds)) for seconds in steps] for name, steps in found.items()}
