"""Nearly valid manifests, in one process of each language: Python, C++ and C accept the same.

`pytest tests/runtime/test_fuzz_manifest.py --fuzz-inputs 20000 -s` before a release; a few hundred in every run.
"""

from __future__ import annotations

import select
import subprocess
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from support.c_steps import library_arguments
from support.corrupt_bundles import link_bundle
from support.documents import ROOT
from support.manifest_mutations import TAKEN_MANIFESTS, mutant
from support.native_runtime import sanitized_build
from support.runtime_bundles import tiny_cpu_bundle

from sala_export.bundle.manifest import MANIFEST_FILE, Manifest
from sala_export.errors import BundleError

_CORPUS = ROOT / "runtime" / "fuzz" / "corpus" / "manifest"
_MOST_SECONDS = 10.0
"""For one input, under sanitizers, on a machine that does other things too."""
_MOST_GROWTH = 64 << 20
_WARM_UP = 100
_PREFIX_BYTES = 4
_NO_FILE = ": No such file or directory: copy the bundle again"
"""How C ends a refusal of a bundle whose manifest it took, and whose files are not there."""


class Answers:
    """A long-lived process of the sanitized build, its answers and its memory. Leaks fail at the end."""

    def __init__(self, program: str, *arguments: str) -> None:
        command = [str(sanitized_build() / "tests" / program), *arguments]
        # The sanitizer keeps what was freed for a while, which is no leak.
        environment = {"ASAN_OPTIONS": "quarantine_size_mb=8"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _, told = self._process.communicate(timeout=_MOST_SECONDS)
        assert self._process.returncode == 0, told.decode(errors="replace")

    def send(self, content: bytes) -> None:
        for start in range(0, len(content), 1 << 16):
            self._to.write(content[start : start + (1 << 16)])

    def take(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            ready, _, _ = select.select([self._from], [], [], _MOST_SECONDS)
            assert ready, f"no answer in {_MOST_SECONDS} s"
            piece = self._from.read(count - len(content))
            assert piece, "the process ended"
            content += piece
        return content

    def take_line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            line += self.take(1)
        return line[:-1].decode()

    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)


def resident_bytes(process: int | str = "self") -> int:
    return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * 4096


class Cpp(Answers):
    """parse_manifest."""

    def __init__(self) -> None:
        super().__init__("sala_answer_manifests")

    def refusal(self, text: bytes) -> str:
        self.send(len(text).to_bytes(_PREFIX_BYTES, "little") + text)
        length = int.from_bytes(self.take(_PREFIX_BYTES), "little")
        return self.take(length).decode()


class C(Answers):
    """sala_model_load of folders with this text as their manifest."""

    def __init__(self) -> None:
        super().__init__("sala_c_steps", *library_arguments())

    def refusal(self, bundle: Path, text: bytes) -> str:
        """What it says, as if the manifest lay in the current directory."""
        (bundle / MANIFEST_FILE).write_bytes(text)
        self.send(f"load {bundle}\n".encode())
        answer = self.take_line()
        if answer == "ok":
            return ""
        _error, _code, _name, message = answer.split(" ", 3)
        return message.replace(f"{bundle}/", "")


def python_refusal(text: bytes) -> str:
    begun = time.monotonic()
    try:
        Manifest.from_json(text, MANIFEST_FILE)
    except BundleError as error:
        return str(error)
    finally:
        assert time.monotonic() - begun < _MOST_SECONDS
    return ""


def is_line(text: str) -> bool:
    """Whether it has neither control characters nor separators of lines."""
    return not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def same_words(refusal: str, wanted: str) -> bool:
    """Whether two messages are equal. A long one has no middle: what was before depends on the path that it had."""
    begin, cut, end = refusal.partition(" ... ")
    return refusal == wanted or (bool(cut) and wanted.startswith(begin) and wanted.endswith(end))


@pytest.fixture(scope="module")
def bases() -> list[bytes]:
    """Manifests that are taken: a whole one, and small ones of every form."""
    small = [(_CORPUS / name).read_bytes() for name in TAKEN_MANIFESTS]
    return [(tiny_cpu_bundle() / MANIFEST_FILE).read_bytes(), *small]


@pytest.fixture
def inputs(pytestconfig: pytest.Config, bases: list[bytes]) -> Iterator[tuple[int, bytes]]:
    first, count = pytestconfig.getoption("--fuzz-seed"), pytestconfig.getoption("--fuzz-inputs")
    return ((seed, mutant(bases, seed)) for seed in range(first, first + count))


def test_bases_are_taken_by_python_and_cpp(bases: list[bytes]) -> None:
    with Cpp() as cpp:
        for text in bases:
            assert (python_refusal(text), cpp.refusal(text)) == ("", "")


def test_mutants_are_distinct_and_repeat(bases: list[bytes]) -> None:
    texts = [mutant(bases, seed) for seed in range(200)]
    assert texts == [mutant(bases, seed) for seed in range(200)]
    assert len(set(texts)) > 190


def test_python_and_cpp_accept_the_same(inputs: Iterator[tuple[int, bytes]]) -> None:
    counts = {"accepted": 0, "refused": 0}
    differ, before = [], (0, 0)
    with Cpp() as cpp:
        for number, (seed, text) in enumerate(inputs):
            refusals = python_refusal(text), cpp.refusal(text)
            counts["refused" if refusals[0] else "accepted"] += 1
            assert all(is_line(refusal) for refusal in refusals), (seed, refusals)
            if bool(refusals[0]) != bool(refusals[1]):
                differ.append((seed, *refusals))
            if number == _WARM_UP:
                before = resident_bytes(), cpp.resident_bytes()
        after = resident_bytes(), cpp.resident_bytes()
    print(f"manifests through Python and C++: {counts}, {len(differ)} disagreements")  # noqa: T201 -- shown by -s
    assert not differ, differ[:5]
    assert min(counts.values()) > 0
    assert max(now - then for now, then in zip(after, before, strict=True)) < _MOST_GROWTH, (before, after)


def test_c_takes_what_cpp_takes_in_the_same_words(inputs: Iterator[tuple[int, bytes]], tmp_path: Path) -> None:
    """C reads a manifest where none of its files lie. Of those that it takes, it loads one in fifty with files."""
    counts, before = {"accepted": 0, "refused": 0, "loaded": 0}, 0
    bare, whole = tmp_path / "bare", link_bundle(tiny_cpu_bundle(), tmp_path / "whole")
    bare.mkdir()
    with Cpp() as cpp, C() as c:
        for number, (seed, text) in enumerate(inputs):
            wanted, refusal = cpp.refusal(text), c.refusal(bare, text)
            counts["refused" if wanted else "accepted"] += 1
            assert is_line(refusal), (seed, refusal)
            assert same_words(refusal, wanted) if wanted else refusal.endswith(_NO_FILE), (seed, wanted, refusal)
            if not wanted and seed % 50 == 0:
                counts["loaded"] += not c.refusal(whole, text)
            if number == _WARM_UP:
                before = c.resident_bytes()
        after = c.resident_bytes()
    print(f"manifests through C: {counts}")  # noqa: T201 -- shown by -s
    assert min(counts["accepted"], counts["refused"]) > 0
    assert after - before < _MOST_GROWTH, (before, after)
