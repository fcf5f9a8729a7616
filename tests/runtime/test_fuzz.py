"""What fuzzing has found, in every run; fuzzing itself before a release.

`pytest tests/runtime/test_fuzz.py --release --fuzz-seconds 600`
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from support.documents import ROOT
from support.manifest_mutations import TAKEN_MANIFESTS
from support.native_runtime import sanitized_build

from sala_export.bundle.manifest import SCHEMA_VERSION, Manifest
from sala_export.errors import BundleError, SessionError, StateError
from sala_export.runtime.model import Model

FUZZ = ROOT / "runtime" / "fuzz"
TARGETS = ("checkpoint", "manifest", "state", "tokens")
_BUILD = ROOT / "build" / "fuzz"


@functools.cache
def fuzz_build() -> Path:
    """The targets, brought up to date once by each process of a test run, one after the other."""
    _BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(_BUILD / ".lock"):
        for command in (["cmake", "--preset", "fuzz"], ["cmake", "--build", "--preset", "fuzz", "-t", "fuzz_targets"]):
            done = subprocess.run(command, cwd=ROOT / "runtime", capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return _BUILD / "fuzz"


def corpus(target: str) -> list[Path]:
    files = sorted((FUZZ / "corpus" / target).iterdir())
    assert len(files) >= 8
    return files


each_manifest = pytest.mark.parametrize("file", corpus("manifest"), ids=lambda path: path.name)
each_state = pytest.mark.parametrize("file", corpus("state"), ids=lambda path: path.name)
each_prompt = pytest.mark.parametrize("file", corpus("tokens"), ids=lambda path: path.name)


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_is_taken_or_refused_under_sanitizers(target: str) -> None:
    command = [sanitized_build() / "tests" / f"sala_replay_{target}", *corpus(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.splitlines() == [str(file) for file in corpus(target)]


@pytest.mark.release
@pytest.mark.parametrize("target", TARGETS)
def test_target_finds_nothing(target: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The kept corpus, and what mutations of it find in the given time."""
    seconds = pytestconfig.getoption("--fuzz-seconds")
    new = tmp_path / "new"
    new.mkdir()
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={tmp_path}/found-"]
    command = [fuzz_build() / f"fuzz_{target}", *options, new, FUZZ / "corpus" / target]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    units = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert units is not None
    assert int(units[1]) > len(corpus(target)), "mutations ran too"
    print(f"fuzz_{target}: {units[1]} inputs in {seconds} s")  # noqa: T201 -- shown by -s, before a release


@pytest.mark.release
def test_targets_are_built_with_coverage_of_the_library() -> None:
    """Without counters in the library a fuzzer is blind, and finds nothing for ever."""
    command = [fuzz_build() / "fuzz_manifest", "-runs=0", FUZZ / "corpus" / "manifest"]
    told = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stderr
    covered = re.search(r"INITED cov: (\d+)", told)
    assert covered is not None
    assert int(covered[1]) > 500


@each_manifest
def test_manifest_of_the_corpus_is_read_or_refused_by_python(file: Path) -> None:
    if file.name in TAKEN_MANIFESTS:
        assert Manifest.from_json(file.read_bytes(), file.name).schema_version == SCHEMA_VERSION
        return
    with pytest.raises(BundleError) as error:
        Manifest.from_json(file.read_bytes(), file.name)
    assert "\n" not in str(error.value)


@each_state
def test_state_of_the_corpus_is_refused_by_another_model_in_python(model: Model, file: Path) -> None:
    with pytest.raises(StateError):
        model.restore(file)


@each_prompt
def test_tokens_of_the_corpus_are_taken_or_refused_by_python(model: Model, file: Path) -> None:
    content = file.read_bytes()
    ids = np.frombuffer(content[: len(content) // 4 * 4], np.int32)
    session = model.session(max_context=64, chunk_tokens=16)
    if 0 < len(ids) <= 64 and ids.min() >= 0 and ids.max() < model.vocab_size:
        session.prefill(ids)
        assert session.tokens.tolist() == ids.tolist()
        return
    with pytest.raises(SessionError):
        session.prefill(ids)
    assert session.position == 0
