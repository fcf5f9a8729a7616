"""Mutated states in one long-lived process of each language: restored or refused, and the same everywhere.

`pytest tests/runtime/test_fuzz_state.py --fuzz-inputs 20000` before a release, a few hundred in every run.
"""

from __future__ import annotations

import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.c_steps import CError, CSteps, library_arguments
from support.native_runtime import sanitized_build
from support.runtime_bundles import write_cpu_bundle
from support.small_models import write_small_checkpoint
from support.state_mutations import mutated

import sala_export
from sala_export.errors import SalaError
from sala_export.runtime.model import Model

SPARSE = {"kernel_size": 8, "kernel_stride": 4, "init_blocks": 1, "block_size": 8, "window_size": 16, "topk": 4}
_MOST_GROWTH_KIB = 200_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    checkpoint = write_small_checkpoint(
        folder / "small", ["minicpm4", "lightning-attn"], sparse_config=SPARSE, head_dim=32
    )
    return write_cpu_bundle(checkpoint, folder / "small.sala")


@pytest.fixture(scope="module")
def small_model(bundle: Path) -> Model:
    return sala_export.load(bundle, runtime="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def states(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """States of an empty session, of short ones, and of one whose last token has not run."""
    path = tmp_path_factory.mktemp("states") / "a.state"
    session = small_model.session(max_context=128)
    found = []
    for more in (0, 1, 20, 60):
        if more:
            session.prefill([3 + i * i % 90 for i in range(more)])
        session.save(path)
        found.append(path.read_bytes())
    next(session.generate_tokens(stop_tokens=[]))
    session.save(path)
    return [*found, path.read_bytes()]


@pytest.fixture
def in_c(bundle: Path) -> Iterator[CSteps]:
    with CSteps() as steps:
        steps.load(bundle)
        yield steps


@pytest.fixture
def in_cpp(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sanitized_build() / "tests" / "sala_restore_each", *library_arguments(), str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()
        assert process.returncode == 0, "sanitizers end with their own status, leaks included"


def test_every_language_takes_or_refuses_the_same(
    small_model: Model,
    states: list[bytes],
    in_c: CSteps,
    in_cpp: subprocess.Popen[str],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    choose = random.Random(pytestconfig.getoption("--fuzz-seed"))
    path = tmp_path / "a.state"
    outcomes: dict[str, int] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(pytestconfig.getoption("--fuzz-inputs")):
        path.write_bytes(state := mutated(choose.choice(states), choose))
        found = {"Python": of_python(small_model, path), "C": of_c(in_c, path), "C++": of_cpp(in_cpp, path)}
        assert len(set(found.values())) == 1, (number, found, state[:2000])
        assert found["Python"].isprintable(), repr(found["Python"])
        outcome = found["Python"].split(" ")[0]
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["ok"] > 0
    assert outcomes["StateDamaged"] > outcomes["ok"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_GROWTH_KIB
    print(f"{sum(outcomes.values())} mutated states: {outcomes}")  # noqa: T201 -- shown by -s, before a release


def of_python(model: Model, path: Path) -> str:
    try:
        model.restore(path)
    except SalaError as error:
        return f"{error.code} {error}"
    return "ok"


def of_c(steps: CSteps, path: Path) -> str:
    try:
        steps.restore(path)
    except CError as error:
        return f"{error.name} {error}"
    return "ok"


def of_cpp(process: subprocess.Popen[str], path: Path) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    answer = process.stdout.readline().rstrip("\n")
    assert answer, "the program ended"
    return answer if answer == "ok" else answer.split(" ", 2)[2]
