"""Loads of a bundle that is replaced all the time: each is wholly one model, tokenizer included, or is refused.

`pytest tests/e2e/test_replaced_bundle.py --loads 10000` before a release, a few loads in every run.
"""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.two_models import Shown, show, write_two_models

import sala_export
from sala_export.errors import InputError
from sala_export.runtime.model import Model

EXCHANGE = """
import os, random, sys, time
chance = random.Random(int(sys.argv[1]))
while True:
    for old, new in (("live", "away"), ("spare", "live"), ("away", "spare")):
        os.rename(old, new)
    time.sleep(chance.uniform(0, 0.02))
"""
"""Two bundles change places. Between two renames there is none."""

COPY = """
import os, random, shutil, sys, time
chance = random.Random(int(sys.argv[1]))
while True:
    for source in ("two", "one"):
        files = [os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names]
        chance.shuffle(files)
        for file in files:
            shutil.copyfile(file, os.path.join("live", os.path.relpath(file, source)))
            time.sleep(chance.uniform(0, 0.01))
        time.sleep(0.5)
"""
"""The files of two bundles are written over each other's, one by one, with a pause when all are of one."""


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles `one` and `two`: all files have the same sizes, weights and tokenizers differ."""
    folder = tmp_path_factory.mktemp("models")
    write_two_models(folder)
    return folder


@contextmanager
def running(code: str, folder: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", code, "7"], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield
        assert process.poll() is None, process.stderr and process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def load_often(load: Callable[[], Model], expected: list[Shown], loads: int) -> collections.Counter[str]:
    """Load until `loads` loads have ended, one way or the other. Returns how many ended how."""
    ends: collections.Counter[str] = collections.Counter()
    while ends.total() < loads or not ends.keys() & {"model 0", "model 1"}:
        try:
            shown = show(load())
        except InputError as error:  # no bundle for a moment, or a file that a model had mapped was cut short
            ends["refused in one line" if len(str(error).splitlines()) == 1 else str(error)] += 1
            continue
        assert shown in expected, [
            [getattr(shown, field) == getattr(one, field) for field in Shown._fields] for one in expected
        ]
        ends[f"model {expected.index(shown)}"] += 1
    return ends


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("how", ["exchanged", "written over"])
def test_each_load_is_one_model_or_a_refusal(
    two_models: Path,
    tmp_path: Path,
    runtime: str,
    how: str,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(path: Path) -> Model:
        return sala_export.load(path, runtime=runtime, threads=1)

    expected = [show(load(two_models / name)) for name in ("one", "two")]
    assert all(first != second for first, second in zip(*expected, strict=True))
    for source, target in (("one", "live"), ("two", "spare"), ("one", "one"), ("two", "two")):
        shutil.copytree(two_models / source, tmp_path / target)
    loads = pytestconfig.getoption("--loads")
    with running(EXCHANGE if how == "exchanged" else COPY, tmp_path):
        ends = load_often(lambda: load(tmp_path / "live"), expected, loads)
    assert ends.keys() <= {"model 0", "model 1", "refused in one line"}
    with capsys.disabled():
        sys.stdout.write(f"\n{how}, {runtime}: {ends.total()} loads: {dict(sorted(ends.items()))}\n")
