"""The C interface on the CPU, under sanitizers: the same logits, tokens and states as Python and C++."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.c_steps import CError, CSteps, library_arguments
from support.documents import ROOT
from support.native_runtime import sanitized_build
from support.passkey import needle_positions, passkey_config, passkey_prompt, write_passkey_checkpoint
from support.runtime_bundles import tiny_cpu_bundle, write_cpu_bundle

from sala_export.errors import StateError
from sala_export.installation import VERSION
from sala_export.runtime.model import Model
from sala_export.runtime.session import StateTarget

HEADER = ROOT / "runtime" / "include" / "sala.h"
TOLERANCE = 1e-4
"""Of the largest logit; what the C interface is held to. Equal runs give equal bits, chunkings differ by rounding."""


@pytest.fixture
def c() -> Iterator[CSteps]:
    with CSteps() as steps:
        yield steps


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 512, count)


def assert_same(actual: np.ndarray, expected: np.ndarray | None) -> None:
    assert expected is not None
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("tokens", [1, 511, 512, 1403])
def test_logits_are_those_of_python(c: CSteps, model: Model, tokens: int) -> None:
    ids = random_ids(tokens)
    c.load(tiny_cpu_bundle())
    c.session(2048)
    session = model.session(max_context=2048)
    assert_same(c.prefill(ids), session.prefill(ids))
    assert_same(c.decode([5, 6, 7]), [session.prefill([token]) for token in (5, 6, 7)][-1])


@pytest.mark.parametrize("tokens", [511, 512, 513, 1403])
def test_streamed_prompt_is_dense_or_sparse_as_a_whole_one(c: CSteps, model: Model, tokens: int) -> None:
    ids = random_ids(tokens)
    c.load(tiny_cpu_bundle())
    c.session(2048, 64)
    expected = model.session(max_context=2048, chunk_tokens=64).prefill(ids)
    np.testing.assert_array_equal(c.stream(ids, 97), expected)


def test_chunks_and_pieces_do_not_change_logits(c: CSteps, model: Model) -> None:
    ids = random_ids(1100, seed=1)
    c.load(tiny_cpu_bundle())
    expected = model.session(max_context=2048, chunk_tokens=2000).prefill(ids)
    for chunk, piece in ((7, 0), (64, 1000), (1000, 1), (333, 97)):
        c.session(1100, chunk)
        assert_same(c.stream(ids, piece) if piece else c.prefill(ids), expected)


def test_saved_and_restored_session_goes_on_with_the_same_logits(c: CSteps, model: Model, tmp_path: Path) -> None:
    ids = random_ids(700, seed=2)
    c.load(tiny_cpu_bundle())
    c.session(800, 128)
    c.prefill(ids[:613], context_length=700)
    c.save(tmp_path / "a.state")
    c.restore(tmp_path / "a.state", 900, 50)
    assert_same(c.prefill(ids[613:]), model.session(max_context=800).prefill(ids))


def test_fork_and_its_parent_go_on_by_themselves_and_share_what_both_have(c: CSteps, model: Model) -> None:
    ids = random_ids(650, seed=5)
    c.load(tiny_cpu_bundle())
    assert c.cache_bytes() == 0
    c.session(800, 128)
    c.prefill(ids)
    drawn = c.generate(3)
    alone = c.cache_bytes()
    c.fork()
    assert c.cache_bytes() == alone, "nothing has been added"
    parent = c.prefill([7, 8])
    c.swap()
    assert alone < c.cache_bytes() < 2 * alone
    assert c.context() == [*ids.tolist(), *drawn]
    fork = c.prefill([9])
    for logits, more in ((parent, [7, 8]), (fork, [9])):
        session = model.session(max_context=800, chunk_tokens=128)
        session.prefill(ids)
        assert list(session.generate_tokens(max_new_tokens=3)) == drawn
        assert_same(logits, session.prefill(more))
    c.swap()
    c.ask("drop")
    c.swap()
    assert c.context()[-1] == 9, "a fork outlives its parent"
    c.ask("drop")
    assert c.cache_bytes() == 0


def test_rewound_session_goes_on_as_if_it_had_never_gone_further(c: CSteps, model: Model) -> None:
    ids = random_ids(700, seed=6)
    c.load(tiny_cpu_bundle())
    c.session(900, 128)
    session = model.session(max_context=900, chunk_tokens=128)
    session.prefill(ids)
    c.prefill(ids)
    assert c.checkpoints() == session.checkpoints
    drawn = c.generate(6)
    c.ask("checkpoint")
    assert c.checkpoints()[-1] == len(ids) + 5, "the last token has not run"
    assert c.rewind(len(ids)) == len(ids)
    assert c.context() == ids.tolist()
    assert_same(c.logits(), session.logits)
    assert c.generate(6) == drawn
    assert c.rewind(639) == session.rewind(639) == 512
    assert c.checkpoints() == session.checkpoints
    assert_same(c.prefill(ids[512:600]), session.prefill(ids[512:600]))


def test_rewind_without_a_checkpoint_names_the_nearest(c: CSteps) -> None:
    c.load(tiny_cpu_bundle())
    for most, nearest in ((0, "the nearest is at 20"), (-1, "it keeps none")):
        c.session(64, 20, most)
        c.prefill(random_ids(30))
        assert c.checkpoints() == ([] if most == -1 else [20, 30])
        with pytest.raises(CError, match=nearest) as error:
            c.rewind(19)
        assert error.value.name == "InvalidArgument"
        assert len(c.context()) == 30
    c.session(64, 5, 2)
    c.prefill(random_ids(30))
    assert len(c.checkpoints()) == 2


def test_passkeys_are_found(c: CSteps, tmp_path: Path) -> None:
    checkpoint = write_passkey_checkpoint(tmp_path / "checkpoint", passkey_config(num_attention_heads=4, topk=8))
    tokens, needles = passkey_prompt(8192, needle_positions(8192))
    context = len(tokens) + 2 * len(needles)
    c.load(write_cpu_bundle(checkpoint, tmp_path / "passkey.sala"))
    c.session(context)
    c.stream(tokens, 777)
    answers = [int(c.prefill(needle.question(), context).argmax()) for needle in needles]
    assert answers == [needle.value for needle in needles]


def test_draws_are_those_of_python(c: CSteps, model: Model) -> None:
    ids = random_ids(50)
    c.load(tiny_cpu_bundle())
    c.session(128)
    c.prefill(ids)
    session = model.session(max_context=128)
    session.prefill(ids)
    expected = list(session.generate_tokens(max_new_tokens=12, temperature=1.5, seed=3))
    assert c.generate(5, 1.5, 3) + c.generate(7, 1.5, 3) == expected


def test_a_state_crosses_python_cpp_and_c(c: CSteps, model: Model, tmp_path: Path) -> None:
    """Python reads, C++ draws three tokens, C draws three, Python the last three: as one session draws nine."""
    ids = random_ids(150, seed=4)
    states = [tmp_path / f"{language}.state" for language in ("python", "cpp", "c")]
    session = model.session()
    session.prefill(ids)
    session.save(states[0])
    command = [sanitized_build() / "sala-run", tiny_cpu_bundle(), "--load-state", states[0], "--save-state", states[1]]
    libraries = dict(zip(("--onnxruntime", "--operators"), library_arguments(), strict=True))
    command += [word for pair in libraries.items() for word in pair]
    done = subprocess.run([*command, "--max-new-tokens", "3"], capture_output=True, text=True, check=True)
    c.load(tiny_cpu_bundle())
    c.restore(states[1])
    drawn = [int(word) for word in done.stdout.split()] + c.generate(3)
    c.save(states[2])
    drawn += model.restore(states[2]).generate_tokens(max_new_tokens=3)
    assert drawn == list(session.generate_tokens(max_new_tokens=9))


def test_a_target_of_c_is_closed_to_python_until_it_is_saved_to(c: CSteps, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    c.load(tiny_cpu_bundle())
    c.session(256)
    c.ask(f"target {path}")
    with pytest.raises(StateError, match="another process is writing"):
        StateTarget(path)
    c.prefill(random_ids(20, seed=4))
    c.ask("finish 20")
    assert path.stat().st_size == model.state_bytes(20)
    with StateTarget(path), pytest.raises(CError) as error:
        c.ask(f"target {path}")
    assert error.value.name == "StateUnwritable"
    assert [each.name for each in tmp_path.iterdir()] == ["a.state"]


def test_facts_are_those_of_python(c: CSteps, model: Model) -> None:
    c.load(tiny_cpu_bundle())
    engine, precision, fingerprint, vocab_size, max_context, eos_count, eos = c.ask("facts").split()
    assert (engine, precision, int(vocab_size)) == (model.runtime, model.precision, model.vocab_size)
    assert fingerprint == model._native.fingerprint
    assert int(max_context) == model._native.default_max_context
    assert (int(eos_count), int(eos)) == (len(model.eos_token_ids), model.eos_token_ids[0])


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ("load missing.sala", "BundleMissing"),
        ("restore missing.state 0 0", "StateUnreadable"),
        ("session 2147483648 0", "InvalidArgument"),
        ("session 64 -1", "InvalidArgument"),
        ("session 64 0 -2", "InvalidArgument"),
        ("rewind 1", "InvalidArgument"),
        ("rewind -1", "InvalidArgument"),
        ("decode 512", "TokenOutOfRange"),
        ("generate 3 0 0", "NoLogits"),
        ("save missing/a.state", "StateUnwritable"),
        ("target missing/a.state", "StateUnwritable"),
        ("check 3 -1 0", "InvalidArgument"),
        ("check -1 0 0", "InvalidArgument"),
    ],
)
def test_refusal_has_code_name_and_one_line(c: CSteps, wrong: str, name: str) -> None:
    c.load(tiny_cpu_bundle())
    c.session(64)
    with pytest.raises(CError) as error:
        c.ask(wrong)
    assert error.value.name == name
    assert str(error.value)


def declared_functions() -> set[str]:
    return set(re.findall(r"^SALA_API [^;]*?\b(sala_\w+)\(", HEADER.read_text(encoding="utf-8"), re.MULTILINE))


def test_exactly_the_functions_of_the_header_are_exported() -> None:
    library = sanitized_build() / "src" / "c_api" / "libsala.so"
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1].partition("@@")[0] for line in listed.splitlines()}
    assert len(declared_functions()) > 30
    assert exported - {"SALA_1.0", "SALA_1.3", "SALA_1.4", "SALA_1.5", "SALA_1.6", "SALA_1.7"} == declared_functions()


def test_versions_agree() -> None:
    build = sanitized_build()
    assert f"CMAKE_PROJECT_VERSION:STATIC={VERSION}\n" in (build / "CMakeCache.txt").read_text(encoding="utf-8")
    library = build / "src" / "c_api" / "libsala.so"
    header = HEADER.read_text(encoding="utf-8")
    major, minor = (re.search(rf"define SALA_ABI_{part} (\d+)", header)[1] for part in ("MAJOR", "MINOR"))  # type: ignore[index]
    assert library.resolve().name == f"libsala.so.{major}.{minor}"
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert f"[libsala.so.{major}]" in dynamic
