"""The C interface, driven from Python through the program runtime/tests/c/steps.c, built with sanitizers."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from support.native_runtime import sanitized_build

from sala_export.installation import onnxruntime_library, onnxruntime_operators


def library_arguments() -> list[str]:
    """libonnxruntime and libsala_ort.so, as programs of tests and examples take them."""
    return [str(onnxruntime_library()), str(onnxruntime_operators())]


class CSteps:
    """One process; every method is one line to it and its answer. A refusal raises CError."""

    def __enter__(self) -> CSteps:
        self._folder = tempfile.TemporaryDirectory(prefix="sala-c-steps-")
        command = [sanitized_build() / "tests" / "sala_c_steps", *library_arguments()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()
        self._folder.cleanup()
        # Sanitizers end with their own status, leaks included.
        assert self._process.returncode == 0 or kind is not None

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().rstrip("\n")
        assert answer, f"the program ended at: {line}"
        if answer.startswith("error "):
            _, code, name, message = answer.split(" ", 3)
            raise CError(int(code), name, message)
        return answer

    def load(self, bundle: Path) -> None:
        self.ask(f"load {bundle}")

    def session(self, max_context: int, chunk_tokens: int = 0, max_checkpoints: int = 0) -> None:
        self.ask(f"session {max_context} {chunk_tokens} {max_checkpoints}")

    def restore(self, state: Path, max_context: int = 0, chunk_tokens: int = 0) -> None:
        self.ask(f"restore {state} {max_context} {chunk_tokens}")

    def save(self, state: Path) -> None:
        self.ask(f"save {state}")

    def prefill(self, ids: ArrayLike, context_length: int = 0) -> NDArray[np.float32]:
        self.ask(f"prefill {self._tokens(ids)} {context_length}")
        return self.logits()

    def stream(self, ids: ArrayLike, piece: int, context_length: int = 0) -> NDArray[np.float32]:
        """As a stream of unknown length that comes in pieces of `piece` tokens."""
        self.ask(f"stream {self._tokens(ids)} {context_length} {piece}")
        return self.logits()

    def decode(self, ids: Iterable[int]) -> NDArray[np.float32]:
        for token in ids:
            self.ask(f"decode {token}")
        return self.logits()

    def logits(self) -> NDArray[np.float32]:
        path = Path(self._folder.name) / "logits"
        self.ask(f"logits {path}")
        return np.fromfile(path, np.float32)

    def context(self) -> list[int]:
        path = Path(self._folder.name) / "context"
        self.ask(f"tokens {path}")
        return np.fromfile(path, np.int32).tolist()

    def fork(self) -> None:
        """Make the other session a fork of this one."""
        self.ask("fork")

    def swap(self) -> None:
        """Go on with the other session, and with this one after another swap."""
        self.ask("swap")

    def checkpoints(self) -> list[int]:
        return [int(word) for word in self.ask("checkpoints").split()[1:]]

    def rewind(self, position: int) -> int:
        return int(self.ask(f"rewind {position}"))

    def cache_bytes(self) -> int:
        return int(self.ask("bytes"))

    def generate(self, count: int, temperature: float = 0.0, seed: int = 0) -> list[int]:
        words = self.ask(f"generate {count} {temperature} {seed}").split()
        return [int(word) for word in words[: words.index("finish")]]

    def _tokens(self, ids: ArrayLike) -> Path:
        path = Path(self._folder.name) / "tokens"
        np.asarray(ids, np.int32).tofile(path)
        return path


class CError(Exception):
    """A sala_error: code, name, message."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
