"""State files through the Python face: what they hold, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from support.checkpoints import edit_header
from support.runtime_bundles import write_cpu_bundle
from support.small_models import write_small_checkpoint

import sala_export
from sala_export.errors import SessionError, StateError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

IDS = np.random.default_rng(0).integers(3, 512, 120)


@pytest.fixture
def session(model: Model) -> Session:
    return model.session(max_context=1024)


@pytest.fixture
def state(session: Session, tmp_path: Path) -> Path:
    session.prefill(IDS[:100])
    session.save(tmp_path / "a.state")
    return tmp_path / "a.state"


def test_state_is_a_safetensors_file_of_valid_rows(state: Path, session: Session, model: Model) -> None:
    with safe_open(state, "numpy") as file:
        metadata = file.metadata()
        assert metadata["past_length"] == "100"
        assert metadata["precision"] == "fp32"
        np.testing.assert_array_equal(file.get_tensor("token_ids"), IDS[:100])
        np.testing.assert_array_equal(file.get_tensor("logits"), session.logits)
        assert file.get_slice("past_key_values.0.key").get_shape() == [1, 2, 100, 64]
        assert file.get_slice("past_key_values.0.k1").get_shape() == [1, 2, 5, 64]
        assert file.get_slice("past_key_values.0.k2").get_shape() == [1, 2, 0, 64]
        assert file.get_slice("past_key_values.1.state").get_shape() == [1, 32, 64, 64]
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_restored_session_generates_what_the_saved_one_does(state: Path, session: Session, model: Model) -> None:
    restored = model.restore(state)
    options = {"max_new_tokens": 6, "temperature": 0.8, "repetition_penalty": 1.3, "seed": 11}
    assert list(restored.generate_tokens(**options)) == list(session.generate_tokens(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated", id="truncated"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"x"), "follow its last", id="longer"),
        pytest.param(lambda path: path.write_text("a letter"), "not a safetensors", id="foreign"),
        pytest.param(lambda path: path.unlink(), "cannot be opened", id="missing"),
        pytest.param(
            lambda path: edit_header(path, lambda h: h["__metadata__"].update(model="other")),
            "another model",
            id="other model",
        ),
        pytest.param(
            lambda path: edit_header(path, lambda h: h["__metadata__"].update(precision="bf16")),
            "precision 'bf16'",
            id="other precision",
        ),
        pytest.param(
            lambda path: edit_header(path, lambda h: h["__metadata__"].update(version="9")),
            "version '9'",
            id="newer version",
        ),
    ],
)
def test_wrong_state_is_refused(state: Path, model: Model, spoil: Callable[[Path], object], message: str) -> None:
    spoil(state)
    with pytest.raises(StateError, match=message):
        model.restore(state)


def test_state_of_another_model_is_refused(state: Path, tmp_path: Path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "small", ["lightning-attn"], sparse_config={})
    other = sala_export.load(write_cpu_bundle(checkpoint, tmp_path / "small.sala"), threads=1)
    with pytest.raises(StateError, match="another model"):
        other.restore(state)


def test_state_longer_than_max_context_is_refused(state: Path, model: Model) -> None:
    with pytest.raises(SessionError, match="holds 100 tokens, max_context is 99"):
        model.restore(state, max_context=99)


def test_state_that_cannot_be_written_leaves_nothing(session: Session, tmp_path: Path) -> None:
    session.prefill(IDS[:10])
    with pytest.raises(StateError, match="missing"):
        session.save(tmp_path / "missing" / "a.state")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StateError, match="taken"):
        session.save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
