"""The C++ runtime as Python sees it (runtime/bindings). It raises the errors of sala_export.errors."""

from collections.abc import Callable
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from .python_engine import PythonEngine

class Model:
    @staticmethod
    def load(
        bundle: PathLike[str],
        *,
        runtime: str,
        onnxruntime_library: PathLike[str] | None,
        operators_library: PathLike[str] | None,
        tensorrt_library: PathLike[str] | None,
        runtime_cache: PathLike[str] | None,
        decode_graph: bool,
        weights: PathLike[str] | None,
        on_progress: Callable[[int, int], None] | None,
        threads: int,
        verify_hashes: bool,
        bundle_descriptor: int = -1,
        manifest_sha256: str = "",
    ) -> Model: ...
    @staticmethod
    def create(
        engine: PythonEngine,
        *,
        source: str,
        fingerprint: str,
        vocab_size: int,
        max_position_embeddings: int,
        eos_token_ids: list[int],
        inv_freq: list[float],
        kernel_size: int,
        kernel_stride: int,
        dense_len: int,
    ) -> Model: ...
    @property
    def runtime(self) -> str: ...
    @property
    def runtime_reason(self) -> str: ...
    @property
    def on_host(self) -> bool: ...
    @property
    def precision(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def default_max_context(self) -> int: ...
    @property
    def default_chunk_tokens(self) -> int: ...
    def create_session(self, *, max_context: int | None, chunk_tokens: int | None) -> Session: ...
    def restore(self, path: PathLike[str], *, max_context: int | None, chunk_tokens: int | None) -> Session: ...
    def state_bytes(self, tokens: int) -> int: ...
    def check_generate(self, options: GenerateOptions) -> None: ...

class SamplingOptions:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        repetition_penalty: float,
        seed: int,
        min_p: float,
        frequency_penalty: float,
        presence_penalty: float,
        logit_bias: dict[int, float],
    ) -> None: ...

class GenerateOptions:
    def __init__(self, *, max_new_tokens: int, sampling: SamplingOptions, stop_tokens: list[int] | None) -> None: ...

class StopStrings:
    def __init__(self, strings: list[str]) -> None: ...
    def push(self, piece: str) -> str: ...
    def finish(self) -> str: ...
    @property
    def found(self) -> bool: ...

class StateTarget:
    @staticmethod
    def open(path: PathLike[str]) -> StateTarget: ...
    def require_room(self, size: int) -> None: ...
    def close(self) -> None: ...

class Session:
    @property
    def position(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def chunk_tokens(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int32]: ...
    @property
    def logits(self) -> NDArray[np.float32] | None: ...
    def generate(self, options: GenerateOptions) -> Generation: ...
    def save(self, path: PathLike[str]) -> None: ...
    def save_to(self, target: StateTarget) -> None: ...
    def reset(self) -> None: ...
    def stop(self) -> None: ...

class Prefiller:
    def __init__(
        self,
        session: Session,
        *,
        context_length: int | None,
        tokens_total: int | None,
        on_progress: Callable[[int, int | None, float], None] | None,
    ) -> None: ...
    def feed(self, token_ids: NDArray[np.int32]) -> None: ...
    def finish(self) -> NDArray[np.float32]: ...

class Generation:
    def next(self) -> int | None: ...
    @property
    def finish_reason(self) -> str | None: ...

def sample(
    logits: NDArray[np.float32],
    context: NDArray[np.int32],
    options: SamplingOptions,
    *,
    prompt_length: int,
) -> int: ...
