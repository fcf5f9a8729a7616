"""Two models whose files have the same names and sizes: where parts of them are mixed, only the numbers tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from support.checkpoints import edit_json
from support.text_bundles import write_text_bundle

from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.runtime.model import Model
from sala_export.runtime.text import Tokenizer

NAMES = ("one", "two")
_PROMPT = [5, 17, 42, 99]
_TEXT = "Call me Ishmael."


class Shown(NamedTuple):
    """What tells the models apart."""

    fingerprint: str
    logits: tuple[float, ...]
    ids: tuple[int, ...]


def show(model: Model) -> Shown:
    assert isinstance(model.tokenizer, Tokenizer)
    logits = model.session(max_context=256).prefill(_PROMPT)
    return Shown(model.fingerprint, tuple(logits[:8].round(3).tolist()), tuple(model.tokenizer.encode(_TEXT)))


def write_two_models(folder: Path) -> None:
    """Write the bundles `one` and `two` and their checkpoints `checkpoint-one` and `checkpoint-two`."""
    for seed, name in enumerate(NAMES):
        checkpoint = folder / f"checkpoint-{name}"
        write_random_checkpoint(checkpoint, "tiny", layers=1, seed=seed)
        for file in ("config.json", "tokenizer.json"):
            edit_json(checkpoint / file, lambda fields: None)  # spells it as the next one does
        if name == "two":
            edit_json(checkpoint / "config.json", lambda fields: fields.update(scale_emb=16.0))  # 12.0 in the first
            _other_tokenizer(checkpoint)
        write_text_bundle(checkpoint, folder / name)
    for kind in ("", "checkpoint-"):
        one, two = ({path.stat().st_size for path in (folder / f"{kind}{name}").rglob("*")} for name in NAMES)
        assert one == two


def write_over(source: Path, target: Path) -> None:
    """Write the files of `source` over those of `target`, in place. All their sizes and times stay as they are."""
    for path in [path for path in source.rglob("*") if path.is_file()]:
        old = target / path.relative_to(source)
        before = old.stat()
        with old.open("r+b") as file:
            file.write(path.read_bytes())
        os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = old.stat()
        assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def _other_tokenizer(checkpoint: Path) -> None:
    """Give two syllables each other's ids: the file has as many bytes as before."""
    tokenizer = Tokenizer.from_directory(checkpoint)
    first, second = (tokenizer.token(i) for i in tokenizer.encode(_TEXT)[1:3])
    assert first is not None
    assert second is not None

    def exchange(fields: dict[str, dict[str, dict[str, int]]]) -> None:
        vocabulary = fields["model"]["vocab"]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    edit_json(checkpoint / "tokenizer.json", exchange)
