"""Models that are written over in place at one moment of a load, by files of the same sizes and times.

`cp -p` and `rsync --inplace --times` do so between two models of one shape. The load gives the one or the other, or is
refused: it never mixes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.two_models import Shown, show, write_over, write_two_models

import sala_export
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import BundleError, InputError
from sala_export.model_source import ModelSource
from sala_export.runtime.model import Model

Moment = tuple[Any, str, int]
"""An object, its function, and which call of it the models are exchanged before."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_two_models(folder)
    return folder


def before_call(monkeypatch: pytest.MonkeyPatch, moment: Moment, act: Callable[[], None]) -> None:
    """Do `act` once, at the moment."""
    owner, name, call = moment
    function, calls = getattr(owner, name), 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, watched)


def load(model: Path, runtime: str) -> Model:
    return sala_export.load(model, runtime=runtime, threads=1, **({"device": "cpu"} if runtime == "torch" else {}))


def shown_after(
    models: Path, kind: str, live: Path, runtime: str, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Shown], Callable[[], Shown]]:
    """What the two models show, and a load of the first in `live` which becomes the second at the moment."""
    names = [models / f"{kind}{name}" for name in ("one", "two")]
    expected = [show(load(path, runtime)) for path in names]
    assert all(first != second for first, second in zip(*expected, strict=True))
    shutil.copytree(names[0], live)
    before_call(monkeypatch, moment, lambda: write_over(names[1], live))
    return expected, lambda: show(load(live, runtime))


@pytest.mark.parametrize("call", [1, 2, 9])
def test_weights_are_hashed_as_they_are_copied(
    models: Path, tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shown = shown_after(models, "", tmp_path / "live", "torch", (Checkpoint, "fill", call), monkeypatch)
    with pytest.raises(BundleError, match=r"\.weight in .*\.safetensors has another SHA-256 than bundle\.json says"):
        shown()


def test_what_comes_after_the_last_copy_changes_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = (ModelSource, "fingerprint", 1)
    (one, _), shown = shown_after(models, "", tmp_path / "live", "torch", moment, monkeypatch)
    assert shown() == one


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param((ModelSource, "text_files", 1), id="configuration and tokenizer"),
        pytest.param((ModelSource, "weights", 1), id="tokenizer and weights"),
        pytest.param((Checkpoint, "fill", 3), id="two weights"),
        pytest.param((ModelSource, "fingerprint", 1), id="weights and fingerprint"),
    ],
)
def test_a_checkpoint_that_changes_between_two_reads_is_refused(
    models: Path, tmp_path: Path, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shown = shown_after(models, "checkpoint-", tmp_path / "live", "torch", moment, monkeypatch)
    with pytest.raises(InputError, match="was changed while it was read: try again when nothing writes to it"):
        shown()


def test_a_checkpoint_whose_files_are_exchanged_one_by_one_is_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = shutil.copytree(models / "checkpoint-one", tmp_path / "live")
    new = shutil.copytree(models / "checkpoint-two", tmp_path / "new")

    def exchange() -> None:
        for path in list(new.iterdir()):
            path.rename(live / path.name)

    before_call(monkeypatch, (ModelSource, "weights", 1), exchange)
    with pytest.raises(InputError, match=r"/live/.* was (replaced|changed) while it was read"):
        load(live, "torch")


def test_other_weights_that_change_are_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = shutil.copytree(models / "checkpoint-one", tmp_path / "live")
    before_call(monkeypatch, (Checkpoint, "fill", 3), lambda: write_over(models / "checkpoint-two", live))
    with pytest.raises(InputError, match=r"/live/.* was changed while it was read"):
        sala_export.load(models / "one", runtime="torch", device="cpu", weights=live)


@pytest.mark.parametrize("moment", [(Bundle, "text_files", 1), (sala_export.runtime.model, "tokenizer_of", 1)], ids=str)
def test_a_bundle_is_refused_whose_manifest_is_another_than_the_one_that_was_read(
    models: Path, tmp_path: Path, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shown = shown_after(models, "", tmp_path / "live", "onnxruntime", moment, monkeypatch)
    with pytest.raises(BundleError):
        shown()
