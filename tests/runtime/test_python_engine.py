"""Engines written in Python behind the C++ session: what crosses the border, and what their exceptions become."""

from __future__ import annotations

import ctypes
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
    max_context, max_chunk_tokens, default_chunk_tokens, max_batch = 1000, 50, 7, 1
    max_logit_rows = 3
    inputs = (
        TensorSpec("input_ids", DType.INT64, ("batch", "tokens")),
        TensorSpec("past_length", DType.INT32, ("batch",)),
        TensorSpec("context_length", DType.INT32, ("batch",)),
        TensorSpec("rope_cos_sin", DType.FLOAT32, ("batch", "tokens", 4)),
        TensorSpec("logit_rows", DType.INT32, ("rows",)),
        TensorSpec("past_key_values.0.key", DType.FLOAT32, _KEYS),
    )
    outputs = (
        TensorSpec("logits", DType.FLOAT32, ("rows", VOCAB)),
        TensorSpec("present.0.key", DType.FLOAT32, _KEYS),
    )

    device: int | None = None

    def __init__(self) -> None:
        self.prepared: list[int] = []
        self.steps: list[tuple[list[int], int, int]] = []
        self.before_step: Callable[..., None] = nothing
        self.before_prepare: Callable[..., None] = nothing
        self.before_execution: Callable[..., None] = nothing

    def prepare(self, chunk_tokens: int) -> None:
        self.before_prepare()
        self.prepared.append(chunk_tokens)

    def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> CounterExecution:
        self.before_execution()
        address, shape = caches["past_key_values.0.key"]
        # A view, because there is no memory behind the rows that are in use.
        elements = (ctypes.c_float * int(np.prod(shape))).from_address(address)
        return CounterExecution(self, np.ctypeslib.as_array(elements).reshape(shape))


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
        sums = self.keys[0, 0, : past + len(ids), 0].cumsum().astype(int)
        for row, token in enumerate(inputs["logit_rows"]):
            logits[row, sums[past + token] % VOCAB] = 1


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
    assert engine.prepared == [7]
    session.prefill([1, 2, 3, 4, 5, 6, 7, 1, 2])
    assert engine.steps == [([1, 2, 3, 4, 5, 6, 7], 0, 9), ([1, 2], 7, 9)]
    assert list(session.generate_tokens(max_new_tokens=2, stop_tokens=[])) == [7, 6]
    session.save(tmp_path / "a.state")
    restored = model.restore(tmp_path / "a.state", max_context=30)
    assert list(restored.generate_tokens(max_new_tokens=1, stop_tokens=[])) == [4]
    session.reset()
    assert session.prefill([3]).argmax() == 3
    assert model.cache_bytes > 0
    del session, restored
    assert model.cache_bytes == 0, "sessions gave everything back"


def test_fork_has_an_execution_of_its_own_and_begins_with_the_tokens_of_its_parent() -> None:
    engine = Counter()
    model = model_on(engine)
    parent = model.session()
    parent.prefill([1, 2])
    fork = parent.fork()
    assert engine.prepared == [7, 7]
    assert parent.prefill([3]).argmax() == 6
    assert fork.prefill([4]).argmax() == 7
    assert engine.steps[1:] == [([3], 2, 3), ([4], 2, 3)]
    del parent
    assert fork.prefill([5]).argmax() == 12 % VOCAB


def test_what_a_step_wrote_behind_a_checkpoint_is_forgotten_by_a_rewind() -> None:
    session = model_on(Counter()).session()
    session.prefill([1, 2])
    session.prefill([3, 3, 3])
    assert session.rewind(2) == 2
    assert session.logits is not None
    assert session.logits.argmax() == 3
    assert session.prefill([1]).argmax() == 4


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
    model = model_on(engine)
    engine.before_prepare = raising(MemoryError, "3 GiB too much: choose smaller chunk_tokens")
    with pytest.raises(RunError, match="3 GiB too much") as refused:
        model.session()
    assert refused.value.code == "OutOfMemory"
    assert model.cache_bytes == 0


@pytest.mark.parametrize("hook", ["before_prepare", "before_execution"])
def test_session_that_cannot_be_made_gives_back_what_it_took(hook: str, tmp_path: Path) -> None:
    engine = Counter()
    model = model_on(engine)
    session = model.session()
    session.prefill([1, 2])
    session.save(tmp_path / "a.state")
    taken = model.cache_bytes
    setattr(engine, hook, raising(OSError, "unplugged"))
    for make in (model.session, session.fork, lambda: model.restore(tmp_path / "a.state")):
        with pytest.raises(RunError, match="OSError: unplugged") as failed:
            make()
        assert isinstance(failed.value.__cause__, OSError)
    assert model.cache_bytes == taken
    setattr(engine, hook, nothing)
    assert session.fork().prefill([3]).argmax() == 6
    assert session.prefill([4]).argmax() == 7


def test_engine_with_wrong_tensors_is_refused() -> None:
    class Other(Counter):
        outputs = Counter.outputs[1:]

    with pytest.raises(SessionError, match="the step has no tensor logits"):
        model_on(Other())


def test_execution_that_cannot_run_is_a_run_error_of_its_first_step() -> None:
    class Wrong(Counter):
        def create_execution(self, caches: Mapping[str, tuple[Address, Sequence[int]]]) -> Any:
            return "no execution"

    session = model_on(Wrong()).session()
    with pytest.raises(RunError, match="AttributeError: 'str' object has no attribute 'run'"):
        session.prefill([1])


@pytest.mark.parametrize("ordinal", [-1, 4096])
def test_engine_on_a_gpu_that_is_not_there_is_refused(ordinal: int) -> None:
    engine = Counter()
    engine.device = ordinal
    with pytest.raises(UnsupportedError, match=r"NVIDIA driver|GPU") as refused:
        model_on(engine)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("device", ["cuda", 1.5, 2**40, True])
def test_engine_on_a_device_that_is_no_ordinal_is_refused(device: Any) -> None:
    engine = Counter()
    engine.device = device
    with pytest.raises(SessionError, match="the ordinal of a GPU, or None"):
        model_on(engine)
