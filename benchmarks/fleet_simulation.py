"""What affinity and a shared store save in a fleet of 10,000 users: a simulation, so every figure of it is predicted.

    python -m benchmarks.fleet_simulation [--users 10000] [--gpus 64] [--gpu rtx5090] [--precision fp8]

Each user has a conversation of some length, asks, waits for the answer, thinks, and asks again. A GPU keeps states in
its memory, its machine keeps more in its own, and a shared folder has all of them. What has been used longest ago
leaves first. Times of prompts and of tokens, and bytes of states, are those of `sala-export plan`. Rates of links, and
what users do, are options. Only the second half of the time is counted, when memories are full.

The first fleet is the one of `--gpus`. Then the least number of GPUs is searched for with which GPUs and links are busy
for at most 70 % of the time. Every number that is tried is simulated, since fewer GPUs have less memory, too.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from benchmarks.tables import duration, markdown, percent
from sala_export.checkpoint.presets import PRESETS
from sala_export.engine.recipe import GpuRecipe, load_target
from sala_export.engine.request import EngineRequest
from sala_export.planner.plan import make_plan
from sala_export.planner.work import Sala
from sala_export.specs import Precision, format_bytes, format_tokens, parse_bytes

CONTEXTS = {32 << 10: 0.70, 128 << 10: 0.20, 512 << 10: 0.08, 1 << 20: 0.02}
"""Tokens of conversations, and the share of users that have one so long."""
QUESTION_TOKENS = 500
ANSWER_TOKENS = 300
BATCH = 8
"""Answers that a GPU draws in one step."""
TARGET_BUSY = 0.7
"""Share of their time that GPUs and links may be busy in a fleet of the least number of GPUs."""
PATIENCE = 4
"""Times as long as a user thinks: so long after a question the next one comes, even if no answer has."""
POLICIES = (("one replica", True, True), ("any replica", False, True), ("one replica", True, False))
"""Where the turns of a conversation go, whether that is one replica, and whether there is a store."""


class Memory:
    """States that fit into some bytes. The one that was used longest ago goes first."""

    def __init__(self, most_bytes: float) -> None:
        self._most = most_bytes
        self._bytes = 0.0
        self._states: OrderedDict[int, float] = OrderedDict()

    def has(self, user: int) -> bool:
        return user in self._states

    def use(self, user: int, size: float) -> None:
        self._bytes += size - self._states.pop(user, 0.0)
        self._states[user] = size
        while self._bytes > self._most and self._states:
            self._bytes -= self._states.popitem(last=False)[1]


@dataclass(slots=True)
class Machine:
    """A GPU and the machine that it is in."""

    device: Memory
    host: Memory
    link_free: float = 0.0
    compute_free: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What was counted."""

    gpus: int
    seconds: float
    """Length of the time in which it was counted."""
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("GPU", "host", "store", "nowhere"), 0))
    first_token: list[float] = field(default_factory=list)
    computing: float = 0.0
    """Seconds of all GPUs."""
    moving: float = 0.0
    """Seconds of all links."""
    stored: float = 0.0
    """Bytes that came from the store."""

    @property
    def busy(self) -> float:
        return self.computing / self.seconds / self.gpus

    @property
    def linked(self) -> float:
        return self.moving / self.seconds / self.gpus

    def waits(self) -> tuple[float, float]:
        """Seconds to the first token, of half the turns and of 99 %."""
        cuts = statistics.quantiles(self.first_token, n=100)
        return cuts[49], cuts[98]

    def keeps_up(self, think: float) -> bool:
        """False if questions come faster than answers, or before the answer to the one before."""
        return max(self.busy, self.linked) < 1 and self.waits()[1] < PATIENCE * think


class Model:
    """Times and sizes as `sala-export plan` predicts them."""

    def __init__(self, gpu: str, precision: Precision) -> None:
        config = PRESETS["9b"].config
        request = EngineRequest(target=load_target(gpu), precision=precision, max_context=1 << 20, prefill_chunk=8192)
        (planned,) = make_plan(config, request, compare=None, is_published=False).gpus
        self.recipe: GpuRecipe = planned.recipe
        self._rows = {row.context: row for row in planned.rows}
        self._sala = Sala(config)
        first = min(self._rows)
        self.state_room = self.recipe.memory_bytes - (self._rows[first].memory_bytes - self.state_bytes(first))
        self.step = self._rows[128 << 10].decode.predicted

    @cache  # noqa: B019 # there is one model
    def state_bytes(self, tokens: int) -> float:
        return self._sala.cache_bytes(tokens)

    @cache  # noqa: B019
    def read(self, tokens: int) -> float:
        """Seconds to read a prompt of so many tokens, between those of the plan by a straight line."""
        places = [0, *sorted(self._rows)]
        times = [0.0, *(self._rows[place].prefill.predicted for place in places[1:])]
        at = next((at for at, place in enumerate(places) if place >= tokens), len(places) - 1)
        share = (tokens - places[at - 1]) / (places[at] - places[at - 1])
        return times[at - 1] + share * (times[at] - times[at - 1])


def simulate(model: Model, options: argparse.Namespace, gpus: int, *, is_affine: bool, has_store: bool) -> Outcome:
    """Let all users ask a fleet of so many GPUs for a while."""
    chance = random.Random(options.seed)
    contexts = chance.choices([*CONTEXTS], [*CONTEXTS.values()], k=options.users)
    machines = [Machine(Memory(model.state_room), Memory(options.host_memory)) for _ in range(gpus)]
    end = options.minutes * 60.0
    asking = [(chance.uniform(0, options.think), user) for user in range(options.users)]
    heapq.heapify(asking)
    outcome = Outcome(gpus, end / 2)
    while asking and asking[0][0] < end:
        now, user = heapq.heappop(asking)
        machine = machines[user % gpus if is_affine else chance.randrange(gpus)]
        tokens, is_counted = contexts[user], now > end / 2
        size = model.state_bytes(tokens)
        where, moving = _found(machine, user, size, options, has_store=has_store)
        reading = model.read(tokens + QUESTION_TOKENS) - (0.0 if where == "nowhere" else model.read(tokens))
        ready = now
        if moving:
            ready = machine.link_free = max(now, machine.link_free) + moving
        first = max(ready, machine.compute_free) + reading + model.step
        computing = reading + ANSWER_TOKENS * model.step / BATCH
        machine.compute_free = max(ready, machine.compute_free) + computing
        machine.device.use(user, size)
        machine.host.use(user, size)
        if is_counted:
            outcome.found[where] += 1
            outcome.first_token.append(first - now)
            outcome.computing += computing
            outcome.moving += moving
            outcome.stored += size if where == "store" else 0.0
        asked = first + ANSWER_TOKENS * model.step + chance.expovariate(1 / options.think)
        # Users who wait for ever would hide how much is asked for.
        heapq.heappush(asking, (min(asked, now + PATIENCE * options.think), user))
    return outcome


def _found(
    machine: Machine, user: int, size: float, options: argparse.Namespace, *, has_store: bool
) -> tuple[str, float]:
    """Where the state of a conversation is, and the seconds to bring it to the GPU."""
    if machine.device.has(user):
        return "GPU", 0.0
    if machine.host.has(user) and has_store:
        return "host", size / options.host_rate
    return ("store", size / options.network_rate) if has_store else ("nowhere", 0.0)


def least(model: Model, options: argparse.Namespace, *, is_affine: bool, has_store: bool) -> Outcome | None:
    """The fleet of the least number of GPUs that keeps up and has time left. None if one GPU for each user is too few.

    The search begins at `options.gpus`, doubles it as long as that is too few, and halves what lies between.
    """

    def fleet(gpus: int) -> Outcome:
        return simulate(model, options, gpus, is_affine=is_affine, has_store=has_store)

    def suffices(outcome: Outcome) -> bool:
        return max(outcome.busy, outcome.linked) <= TARGET_BUSY and outcome.keeps_up(options.think)

    too_few, found = 0, fleet(min(options.gpus, options.users))
    while not suffices(found):
        if found.gpus == options.users:
            return None
        too_few, found = found.gpus, fleet(min(2 * found.gpus, options.users))
    while found.gpus - too_few > 1:
        tried = fleet((too_few + found.gpus) // 2)
        if suffices(tried):
            found = tried
        else:
            too_few = tried.gpus
    return found


def _cells(outcome: Outcome | None, options: argparse.Namespace) -> list[str]:
    if outcome is None:
        return [f"more than {options.users}", *[""] * 7, "it cannot keep up"]
    turns = sum(outcome.found.values())
    return [
        str(outcome.gpus),
        *(percent(count / turns) for count in outcome.found.values()),
        percent(outcome.busy),
        percent(outcome.linked),
        f"{outcome.stored / outcome.seconds / 1e9:.1f} GB/s",
        ", ".join(map(duration, outcome.waits())) if outcome.keeps_up(options.think) else "it cannot keep up",
    ]


def _table(fleet: Callable[..., Outcome | None], options: argparse.Namespace) -> str:
    """A line for each policy, whose fleet is what `fleet` returns."""
    header = ["conversations go to", "GPUs", "on the GPU", "host", "store", "nowhere", "GPUs busy", "links busy"]
    lines = []
    for name, is_affine, has_store in POLICIES:
        cells = _cells(fleet(is_affine=is_affine, has_store=has_store), options)
        lines.append([f"{name}, {'store' if has_store else 'no store'}", *cells])
    return markdown([*header, "store reads", "first token, half and 99 %"], lines)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpu", default="rtx5090")
    parser.add_argument("--precision", type=Precision, default=Precision.FP8)
    parser.add_argument("--think", type=float, default=120.0, help="seconds between an answer and the next question")
    parser.add_argument("--host-memory", type=parse_bytes, default="192G", help="for states, of each GPU's machine")
    parser.add_argument("--host-rate", type=float, default=20e9, help="bytes/s from the host's memory to the GPU")
    parser.add_argument("--network-rate", type=float, default=3e9, help="bytes/s from the store to a machine")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    model = Model(options.gpu, options.precision)
    print(f"{model.recipe.gpu}, {options.precision}: {format_bytes(model.state_room)} for states (all predicted)\n")
    lines = [
        [
            format_tokens(tokens),
            percent(share),
            format_bytes(model.state_bytes(tokens)),
            f"{model.state_room / model.state_bytes(tokens):.0f}",
            duration(model.read(tokens)),
            duration(model.state_bytes(tokens) / options.network_rate),
            duration(model.state_bytes(tokens) / options.host_rate),
        ]
        for tokens, share in CONTEXTS.items()
    ]
    print(markdown(["context", "users", "state", "states on a GPU", "read", "from the store", "from the host"], lines))
    print(f"\n{options.users:,} users, {options.think:g} s to think, {options.gpus} GPUs:\n")
    print(_table(partial(simulate, model, options, options.gpus), options))
    print(f"\nThe least number of GPUs with which GPUs and links are at most {percent(TARGET_BUSY)} busy:\n")
    print(_table(partial(least, model, options), options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
