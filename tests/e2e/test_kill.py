"""Commands killed at any instant: `pytest tests/e2e/test_kill.py --kills 40` before a release, a few in every run."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest
from support.fault_ground import Ground
from support.file_faults import Effect, Fault, Outcome
from support.writing_commands import QUICK, WRITING_COMMANDS

ROUNDS_BETWEEN_WHOLE_RUNS = 5
MOST_OPENINGS = 12


def instants(calls: Sequence[str], count: int, chance: random.Random) -> list[int]:
    """Numbers of calls: half at random, half of those that give or take names, the last of which are the worst."""
    naming = [number for number, name in enumerate(calls, 1) if not name.startswith(("write", "pwrite", "sendfile"))]
    worst = [number for number in naming if calls[number - 1].startswith("rename")]
    chosen = [*worst[: count // 2], *chance.sample(naming, min(count // 4, len(naming)))]
    return [*chosen, *chance.choices(range(1, len(calls) + 1), k=count - len(chosen))]


def openings(calls: Sequence[str], chance: random.Random) -> list[int]:
    """Numbers of calls that open a file to write it: all of a command with few files, since each may be a library's."""
    numbers = [number for number, name in enumerate(calls, 1) if name.startswith("open")]
    return chance.sample(numbers, min(MOST_OPENINGS, len(numbers)))


@pytest.fixture(scope="module", params=QUICK)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(WRITING_COMMANDS[request.param], tmp_path_factory.mktemp(request.param))


def test_killed_commands_leave_old_or_new_and_the_next_run_cleans(ground: Ground, pytestconfig: pytest.Config) -> None:
    chance = random.Random(0)
    kills = pytestconfig.getoption("--kills")
    for round_, number in enumerate(instants(ground.calls, kills, chance), 1):
        ground.put_old()
        effect = chance.choice((Effect.KILL_BEFORE, Effect.KILL_AFTER))
        ground.run(fault=Fault(at=number, effect=effect))
        ground.check_whole()
        if round_ % ROUNDS_BETWEEN_WHOLE_RUNS == 0:
            ground.finish()
    ground.finish()


def test_commands_whose_disk_fails_say_so_in_a_line_and_lose_nothing(
    ground: Ground, pytestconfig: pytest.Config
) -> None:
    chance = random.Random(1)
    chosen = instants(ground.calls, pytestconfig.getoption("--kills"), chance)
    for number in [*openings(ground.calls, chance), *chosen]:
        ground.put_old()
        effect = chance.choice((Effect.FAIL, Effect.FAIL_FROM))
        error = chance.choice((errno.ENOSPC, errno.EIO, errno.EROFS))
        done = ground.run(fault=Fault(at=number, effect=effect, error=error))
        ground.check_whole()
        check_one_line(done, ground.command.output)
    ground.finish()


def check_one_line(done: Outcome, output: str) -> None:
    """A failed command ends as documented: exit code 1 or 2, and its last line says what is wrong, and where."""
    assert done.status in (0, 1, 2), done.told
    assert "Traceback" not in done.told
    assert "terminate called" not in done.told
    if done.status:
        *_, last = done.told.splitlines()
        assert last.startswith(("error: ", "sala-run: ")), done.told
        assert f"/{output}" in last or f".{output}.partial" in last or f" {output}" in last, done.told
