"""Documents as the chat template writes them into a conversation: what stands in front of one, and what behind it.

A document is the beginning of the first user's message. It is read as it arrives, long before anybody asks about it. So
the template writes around a document that it never sees, and a conversation is written with a mark in its place.
"""

from __future__ import annotations

import array
import codecs
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.literal import LiteralMarks
from .errors import ApiError, invalid

if TYPE_CHECKING:
    from ..runtime.chat import ChatTemplate
    from ..runtime.text import Tokenizer

_BETWEEN = "\n\n"
"""What separates the document from the question behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadDocument:
    """A document in a context, as conversations that go on from there need it."""

    name: str
    """The name of the context, for messages."""
    ids: NDArray[np.int32]
    """int32 [tokens], with those in front of the document."""
    system: str | None
    """The system message in front of it."""
    front: str
    """SHA-256 of the text in front of it, in hexadecimal digits."""

    def place(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
        """Messages with a mark in the place of the document, and with its system message. Returns them and the mark.

        Raises: ApiError if there is another system message, or no user's message.
        """
        users = (at for at, message in enumerate(messages) if message["role"] == "user")
        first = next(users, None)
        if first is None:
            raise invalid("messages", "no message is of role user: the first of them asks about the context")
        systems = [at for at in range(first) if messages[at]["role"] == "system"]
        for at in systems:
            if messages[at]["content"] != self.system or at > 0:
                what = "without a system message" if self.system is None else "behind another system message"
                raise invalid(
                    f"messages[{at}]",
                    f"messages[{at}] is a system message, and the context {self.name!r} was read {what}: leave it out, "
                    "or read the context again with this one (system=... in the query)",
                )
        mark = "".join(chr(0xFDD0 + byte % 32) for byte in secrets.token_bytes(32))  # as LiteralMarks, no characters
        asked = {**messages[first], "content": f"{mark}{_BETWEEN}{messages[first]['content']}"}
        begin = [{"role": "system", "content": self.system}] if self.system is not None and not systems else []
        return [*begin, *messages[:first], asked, *messages[first + 1 :]], mark

    def behind(self, text: str, mark: str, marks: LiteralMarks) -> str:
        """What the template has written behind the document. Args: text: all of it.

        Raises: ApiError if what it has written in front is not what stands in front of the document in the context.
        """
        front, *others = text.split(mark)
        if len(others) != 1:
            raise invalid(
                "context",
                "the chat template of this model writes the first user's message never or twice in this conversation, "
                "so it cannot go on from a context: begin a new conversation",
            )
        if _front_hash(front, marks) != self.front:
            raise invalid(
                "context",
                f"the chat template of this model writes something else in front of the document than when the context "
                f"{self.name!r} was read: leave out tools, variables of the template and messages in front of the "
                "first question, or read the context again",
            )
        return others[0]


class DocumentEncoder:
    """Encodes a document that arrives in pieces, behind what the template writes in front of it. Only ids are held.

    Its methods take time: call them in a thread.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, system: str | None) -> None:
        """Raises: SessionError if the template looks at the text of prompts; BundleError if it does not compile."""
        marks = LiteralMarks(tokenizer)
        marked = None if system is None else marks.around_special(system)
        front, _, self._trims = template.around_prompt(goes_on=False, system=marked)
        self.front = _front_hash(front, marks)
        """As in `ReadDocument`."""
        self._encoder = tokenizer.stream_encoder(add_special_tokens=False)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._ids = array.array("i")
        self._bytes = 0
        self._waiting_bytes = 0
        self._is_empty = True
        for piece, literal in marks.pieces(front):
            self._ids.extend(self._encoder.push(piece, literal=literal))

    @property
    def tokens(self) -> int:
        """How many ids there are so far."""
        return len(self._ids)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of text that wait for a place where the text can be cut."""
        return self._waiting_bytes

    def push(self, data: bytes) -> None:
        """Take a piece, UTF-8 that may be cut anywhere. Raises: ApiError with the offset of what is no UTF-8."""
        self._push(self._decoded(data, final=False), len(data))

    def finish(self) -> NDArray[np.int32]:
        """End the document. Returns all ids, int32 [tokens].

        Raises: ApiError if it ends within a character, or is empty.
        """
        self._push(self._decoded(b"", final=True), 0)
        if self._is_empty:
            raise ApiError(400, "the text is empty: send at least one character", code="empty_text")
        self._ids.extend(self._encoder.finish())
        return np.array(self._ids, np.int32)

    def _decoded(self, data: bytes, *, final: bool) -> str:
        start = self._bytes - len(self._utf8.getstate()[0])
        self._bytes += len(data)
        try:
            return self._utf8.decode(data, final)
        except UnicodeDecodeError as error:
            raise ApiError(
                400,
                f"the text is not UTF-8 at byte {start + error.start}, counted from 0 ({error.reason}): convert it "
                "first, with iconv for example",
                code="not_utf8",
            ) from None

    def _push(self, text: str, size: int) -> None:
        if self._is_empty and self._trims:
            text = text.lstrip()
        self._is_empty = self._is_empty and not text
        ids = self._encoder.push(text, literal=True) if text else []
        self._ids.extend(ids)
        self._waiting_bytes = 0 if ids else self._waiting_bytes + size


def _front_hash(text: str, marks: LiteralMarks) -> str:
    plain = "".join(piece for piece, _ in marks.pieces(text))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
