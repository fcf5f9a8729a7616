"""Engines written in Python behind the C++ session: what crosses the border, and what their exceptions become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sala_export.errors import RunError, SessionError, UnsupportedError
from sala_export.runtime import _native
from sala_export.runtime.model import Model
from sala_export.runtime.python_engine import Address
from sala_export.specs import DType, TensorSpec

VOCAB = 8
DENSE_LEN = 16
_KEYS = ("batch", 1, "capacity", 2)


def nothing(*_: object) -> None:
    """No failure."""


class Counter:
    """An engine whose logits are one-hot at the sum of all tokens so far, which it keeps in its cache."""

    name, precision = "counter", "fp32"
    max_context, max_chunk_tokens, default_chunk_tokens = 1000, 50, 7
    inputs = (
        TensorSpec("input_ids", DType.INT64, ("batch", "tokens")),
        TensorSpec("past_length", DType.INT32, ("batch",)),
        TensorSpec("context_length", DType.INT32, ("batch",)),
        TensorSpec("rope_cos_sin", DType.FLOAT32, ("batch", "tokens", 4)),
        TensorSpec("past_key_values.0.key", DType.FLOAT32, _KEYS),
    )
    outputs = (
        TensorSpec("logits", DType.FLOAT32, ("batch", VOCAB)),
        TensorSpec("present.0.key", DType.FLOAT32, _KEYS),
    )

    def __init__(self) -> None:
        self.memory: dict[Address, NDArray[np.uint8]] = {}
        self.prepared: list[tuple[int, int]] = []
        self.steps: list[tuple[list[int], int, int]] = []
        self.before_step: Callable[..., None] = nothing
        self.before_prepare: Callable[..., None] = nothing
        self.before_read: Callable[..., None] = nothing

    def prepare(self, max_context: int, chunk_tokens: int) -> None:
        self.before_prepare()
        self.prepared.append((max_context, chunk_tokens))

    def allocate(self, size: int) -> Address:
        block = np.zeros(size, np.uint8)
        self.memory[block.ctypes.data] = block
        return block.ctypes.data

    def release(self, address: Address) -> None:
        del self.memory[address]

    def clear(self, address: Address) -> None:
        self.memory[address][:] = 0

    def read(self, host: NDArray[np.uint8], address: Address) -> None:
        self.before_read()
        host[:] = self.at(address, len(host))

    def write(self, address: Address, host: NDArray[np.uint8]) -> None:
        self.at(address, len(host))[:] = host

    def at(self, address: Address, size: int) -> NDArray[np.uint8]:
        first = max(start for start in self.memory if start <= address)
        return self.memory[first][address - first :][:size]

    def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> CounterExecution:
        address, shape = caches["past_key_values.0.key"]
        return CounterExecution(self, self.at(address, 4 * int(np.prod(shape))).view(np.float32).reshape(shape))


class CounterExecution:
    def __init__(self, engine: Counter, keys: NDArray[np.float32]) -> None:
        self.engine = engine
        self.keys = keys

    def run(self, inputs: Mapping[str, NDArray[Any]], logits: NDArray[np.float32]) -> None:
        (ids,), (past,), (context,) = (inputs[spec.name] for spec in self.engine.inputs[:3])
        self.engine.before_step(past)
        assert inputs["rope_cos_sin"].shape == (1, len(ids), 4)
        self.keys[0, 0, past : past + len(ids), 0] = ids
        self.engine.steps.append((ids.tolist(), int(past), int(context)))
        logits[:] = 0
        logits[0, int(self.keys[0, 0, : past + len(ids), 0].sum()) % VOCAB] = 1


def model_on(engine: Any) -> Model:
    native = _native.Model.create(
        engine,
        source="counter",
        fingerprint="abc",
        vocab_size=VOCAB,
        max_position_embeddings=20,
        eos_token_ids=[1],
        inv_freq=[1.0, 0.5],
        kernel_size=4,
        kernel_stride=2,
        dense_len=DENSE_LEN,
    )
    return Model(native, None)


def test_session_chunks_decodes_and_saves_through_it(tmp_path: Path) -> None:
    engine = Counter()
    model = model_on(engine)
    assert (model.runtime, model.precision, model.eos_token_ids) == ("counter", "fp32", (1,))
    session = model.session()
    assert engine.prepared == [(20, 7)]
    session.prefill([1, 2, 3, 4, 5, 6, 7, 1, 2])
    assert engine.steps == [([1, 2, 3, 4, 5, 6, 7], 0, 9), ([1, 2], 7, 9)]
    assert list(session.generate_tokens(max_new_tokens=2, stop_tokens=[])) == [7, 6]
    session.save(tmp_path / "a.state")
    restored = model.restore(tmp_path / "a.state", max_context=30)
    assert list(restored.generate_tokens(max_new_tokens=1, stop_tokens=[])) == [4]
    session.reset()
    assert session.prefill([3]).argmax() == 3
    del session, restored
    assert engine.memory == {}, "sessions gave everything back"


@pytest.mark.parametrize("tokens", [15, 16, 17, 40])
@pytest.mark.parametrize("piece", [1, 7, 40])
def test_streamed_prompt_runs_the_steps_of_a_whole_one(tokens: int, piece: int) -> None:
    engine = Counter()
    model = model_on(engine)
    ids = [i % VOCAB for i in range(tokens)]
    model.session(max_context=50).prefill(ids)
    whole = [step[:2] for step in engine.steps]
    engine.steps.clear()
    model.session(max_context=50).prefill(ids[start : start + piece] for start in range(0, tokens, piece))
    assert [step[:2] for step in engine.steps] == whole
    assert {context >= DENSE_LEN for _, _, context in engine.steps} == {tokens >= DENSE_LEN}


def raising(kind: type[BaseException], text: str) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise kind(text)

    return fail


def test_failed_step_is_a_run_error_with_its_cause_and_poisons_the_session() -> None:
    engine = Counter()
    session = model_on(engine).session()
    engine.before_step = raising(ZeroDivisionError, "by nothing")
    with pytest.raises(RunError, match="ZeroDivisionError: by nothing") as failed:
        session.prefill([1, 2])
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    engine.before_step = nothing
    with pytest.raises(RunError, match="reset it") as poisoned:
        session.prefill([1])
    assert poisoned.value.__cause__ is None
    session.reset()
    assert session.prefill([2]).argmax() == 2


@pytest.mark.parametrize("kind", [UnsupportedError, KeyboardInterrupt, SystemExit])
def test_own_errors_and_interruptions_come_out_as_they_are(kind: type[BaseException]) -> None:
    engine = Counter()
    session = model_on(engine).session()
    engine.before_step = raising(kind, "not now")
    with pytest.raises(kind) as raised:
        session.prefill([1, 2])
    assert str(raised.value) == "not now"
    assert raised.value.__cause__ is None


def test_too_little_memory_refuses_the_session_before_anything_is_allocated() -> None:
    engine = Counter()
    engine.before_prepare = raising(MemoryError, "3 GiB too much: choose a smaller max_context")
    with pytest.raises(RunError, match="3 GiB too much") as refused:
        model_on(engine).session()
    assert refused.value.code == "OutOfMemory"  # type: ignore[attr-defined]
    assert engine.memory == {}


def test_error_while_saving_leaves_no_file(tmp_path: Path) -> None:
    engine = Counter()
    session = model_on(engine).session()
    session.prefill([1, 2])
    engine.before_read = raising(OSError, "unplugged")
    with pytest.raises(RunError, match="OSError: unplugged"):
        session.save(tmp_path / "a.state")
    assert list(tmp_path.iterdir()) == []


def test_engine_with_wrong_tensors_is_refused() -> None:
    class Other(Counter):
        outputs = Counter.outputs[1:]

    with pytest.raises(SessionError, match="the step has no tensor logits"):
        model_on(Other())


def test_engine_that_returns_another_type_is_refused() -> None:
    class Wrong(Counter):
        def allocate(self, size: int) -> Any:
            return "somewhere"

    with pytest.raises(RunError, match="value of another type"):
        model_on(Wrong()).session()
