"""The text that ships with the package: documents in many languages, code, dialogue and records, all our own writing.

`text/README.md` says what is there. `quantize` reads the first three quarters of each document, `verify` the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("text")
_LONG = "long-"
"""Names of documents that give a long sample begin with it."""
_HELD_OUT = 4
"""One part in so many is for `verify`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file of the text."""

    name: str
    text: str

    @property
    def is_long(self) -> bool:
        return self.name.startswith(_LONG)

    @property
    def to_calibrate(self) -> str:
        return self.text[: self._border]

    @property
    def to_verify(self) -> str:
        return self.text[self._border :]

    @property
    def _border(self) -> int:
        return len(self.text) - len(self.text) // _HELD_OUT


def documents() -> Iterator[Document]:
    """Read the documents, those of a long sample last."""
    files = sorted(_FOLDER.glob("*.txt"), key=lambda file: (file.name.startswith(_LONG), file.name))
    for file in files:
        yield Document(name=file.name, text=file.read_text(encoding="utf-8"))
