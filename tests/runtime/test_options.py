"""Options that are no numbers, paths or flags, or beyond their type: one error before any work, naming the option."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sala_export.errors import BundleError, InputError, RequestError, SessionError, StateError
from sala_export.runtime.model import Model, load_bundle
from sala_export.runtime.session import Session, StateTarget

HUGE = 10**5000
NO_WHOLE_NUMBERS: list[object] = [1.0, "1", True, None, [], np.float64(1), np.True_, float("nan"), Fraction(1, 2)]
NO_NUMBERS: list[object] = ["1.0", None, True, [1.0], np.True_, HUGE, 1j]


@pytest.fixture
def session(model: Model) -> Session:
    session = model.session(max_context=64)
    session.prefill([5, 17, 42])
    return session


def refused(name: str, options: dict[str, Any], model: Model, session: Session) -> None:
    for call in (model.check_generate, session.generate_tokens):
        with pytest.raises(SessionError) as error:
            call(**options)
        assert str(error.value).startswith(f"{name} is "), str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


def accepted(options: dict[str, Any], model: Model) -> None:
    model.check_generate(**options)


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed"])
def test_whole_numbers_are_checked(name: str, model: Model, session: Session) -> None:
    for value in [*NO_WHOLE_NUMBERS, -1, -(2**63) - 1, 2**64, HUGE, -HUGE, np.int64(-1)]:
        refused(name, {name: value}, model, session)
    for value in (0, 1, 2**63 - 1, np.uint8(3), np.int64(2**62)):
        accepted({name: value}, model)


@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_real_numbers_are_checked(name: str, model: Model, session: Session) -> None:
    for value in [*NO_NUMBERS, -0.5, float("nan"), float("inf"), -HUGE, np.float32("nan")]:
        refused(name, {name: value}, model, session)
    for value in (1, 0.5, np.float32(0.5), np.int32(1), Fraction(1, 2)):
        accepted({name: value}, model)


def test_penalty_that_overflows_logits_is_refused(model: Model, session: Session) -> None:
    for value in (1e-300, 1e-9, 101, 1e300, 0.0):
        refused("repetition_penalty", {"repetition_penalty": value}, model, session)
    for value in (0.01, 100.0):
        assert next(session.generate_tokens(repetition_penalty=value, stop_tokens=[])) < model.vocab_size


@pytest.mark.parametrize(
    ("name", "taken", "beyond"),
    [
        ("min_p", (0, 1, 0.5, np.float32(0.25)), (-0.01, 1.01)),
        ("frequency_penalty", (-2, 2, 0, 0.3), (-2.01, 2.01)),
        ("presence_penalty", (-2, 2, 0, np.float64(1.5)), (-2.01, 2.01)),
    ],
)
def test_penalties_and_min_p_are_checked(
    name: str, taken: tuple[float, ...], beyond: tuple[float, ...], model: Model, session: Session
) -> None:
    for value in [*NO_NUMBERS, *beyond, float("nan"), float("inf")]:
        refused(name, {name: value}, model, session)
    for value in taken:
        accepted({name: value}, model)


def test_logit_bias_is_checked(model: Model, session: Session) -> None:
    wrong: list[tuple[Any, str]] = [
        ([(1, 2.0)], "logit_bias is "),
        ("1", "logit_bias is "),
        ({-1: 1.0}, "an id of logit_bias is -1"),
        ({1.0: 1.0}, "an id of logit_bias is 1.0"),
        ({True: 1.0}, "an id of logit_bias is True"),
        ({"one": 1.0}, "an id of logit_bias is 'one'"),
        ({"1" * 5000: 1.0}, "an id of logit_bias is '1111"),
        ({512: 1.0}, "logit_bias has token 512, expected 0 to 511"),
        ({5: 100.5}, "logit_bias of token 5 is 100.5, expected -100 to 100"),
        ({5: "1"}, "logit_bias of token 5 is '1'"),
        ({5: float("nan")}, "logit_bias of token 5 is nan"),
        ({5: 1.0, "5": 2.0}, "logit_bias has token 5 twice"),
    ]
    for value, message in wrong:
        for call in (model.check_generate, session.generate_tokens):
            with pytest.raises(SessionError) as error:
                call(logit_bias=value)
            assert str(error.value).startswith(message), str(error.value)
            assert len(str(error.value)) < 200
    for biases in ({}, None, {5: -100, np.int64(7): 100}, {"5": 3}):
        accepted({"logit_bias": biases}, model)
    assert next(session.generate_tokens(logit_bias={"77": 100}, stop_tokens=[])) == 77


@pytest.mark.parametrize("wrong", [-1, 512, 2**31, 2**32 + 2, 2**64, 1.0, "2", True, None])
def test_stop_tokens_are_checked(wrong: object, model: Model, session: Session) -> None:
    for check in (model.check_generate, session.generate_tokens):
        with pytest.raises(SessionError, match="stop_tokens"):
            check(stop_tokens=[2, wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("wrong", ["12", 5, b"12"])
def test_stop_tokens_are_a_list(wrong: object, model: Model) -> None:
    with pytest.raises(SessionError, match="expected a list of token ids"):
        model.check_generate(stop_tokens=wrong)  # type: ignore[arg-type]


def test_stop_tokens_come_in_any_list(model: Model) -> None:
    lists: list[Any] = [[], (2, 3), np.array([2, 3]), range(3), None]
    for stop_tokens in lists:
        model.check_generate(stop_tokens=stop_tokens)


def test_unknown_option_is_refused_with_the_known_ones(model: Model) -> None:
    with pytest.raises(SessionError, match="warmth is no option: choose max_new_tokens"):
        model.check_generate(warmth=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["max_context", "chunk_tokens"])
def test_sizes_of_sessions_are_checked(name: str, model: Model) -> None:
    for value in (0, -1, 2**31, 2**63, 2**64, HUGE, 1.0, "8", True):
        with pytest.raises(SessionError, match=name):
            model.session(**{name: value})  # type: ignore[arg-type]
    model.session(**{name: np.int32(16)})  # type: ignore[arg-type]


def test_threads_are_checked_before_the_bundle_is_looked_at() -> None:
    for value in (-1, 1025, 1_000_000, 2**31, 2**64, 1.0, "2", True, None):
        with pytest.raises(SessionError, match=r"threads is .*expected a whole number from 0 to 1024"):
            load_bundle("no-bundle", threads=value)  # type: ignore[arg-type]


def test_context_length_is_checked(session: Session) -> None:
    for value in (0, 3, -1, 2**31, 2**63, -(2**63), HUGE, 5.0, "8", True):
        with pytest.raises(SessionError, match="context_length"):
            session.prefill([1, 2], context_length=value)  # type: ignore[arg-type]
    assert session.position == 3


@pytest.mark.parametrize("wrong", ["a\0b", Path("a\0b"), "a\ud800", b"a", 5, None])
def test_paths_of_states_are_checked(wrong: Any, model: Model, session: Session) -> None:
    for call in (model.restore, session.save, StateTarget):
        with pytest.raises(StateError, match=r"^the state is .*, expected a path") as error:
            call(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weights", BundleError),
        ("onnxruntime_library", RequestError),
        ("operators_library", RequestError),
        ("tensorrt_library", RequestError),
        ("runtime_cache", RequestError),
    ],
)
@pytest.mark.parametrize("wrong", ["a\0b", Path("a\0b"), Path("a\ud800"), b"a", 5])
def test_paths_to_load_are_checked(name: str, expected: type[InputError], wrong: Any) -> None:
    with pytest.raises(expected, match=rf"^{name} is .*, expected a path") as error:
        load_bundle("no-bundle", **{name: wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["verify_hashes", "decode_graph"])
def test_flags_are_checked(name: str) -> None:
    for wrong in ("no", 2, None, [], 0.0):
        with pytest.raises(SessionError, match=f"^{name} is .*, expected True or False"):
            load_bundle("no-bundle", **{name: wrong})  # type: ignore[arg-type]
