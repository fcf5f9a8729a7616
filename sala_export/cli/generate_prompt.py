"""The prompt of `generate`: text, a file or a stream, as token ids while it arrives."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, SessionError
from .signals import raising

if TYPE_CHECKING:
    from ..runtime.text import StreamEncoder, Tokenizer
    from .chat_options import Chat

STDIN = "-"
_BLOCK_BYTES = 64 * 1024


@dataclass(slots=True)
class PromptSource:
    """The prompt as bytes, with a count of the bytes that were read."""

    file: BinaryIO | None
    """The file that the prompt is read from. None if the prompt is `text`."""
    text: bytes = b""
    bytes_total: int | None = None
    name: str = "prompt"
    """What it is, for messages."""
    question: str = ""
    """Text of the prompt behind that of the file."""
    bytes_read: int = field(default=0, init=False)
    """Bytes of the file or text that were read, without the question."""
    tokens_read: int = field(default=0, init=False)
    file_tokens: int = field(default=0, init=False)
    """The first tokens of the prompt, which no question behind the file changes. 0 while that is not known."""
    _file_characters: int = field(default=0, init=False)
    _is_behind_file: bool = field(default=False, init=False)

    @classmethod
    def open(cls, prompt: str | None, prompt_file: str | None, stack: ExitStack) -> PromptSource:
        """Open what `--prompt` and `--prompt-file` give. Raises: RequestError for what is no text, or cannot be read.

        A text comes behind the file, on a line of its own. A FIFO is a stream like standard input, and is waited for.
        """
        if prompt_file is None:
            # A shell may pass bytes that are no UTF-8; they come back here, to be refused with their offset.
            text = (prompt or "").encode("utf-8", "surrogateescape")
            return cls(None, text, bytes_total=len(text))
        if prompt_file == STDIN:
            if sys.stdin is None:
                raise RequestError("--prompt-file -: standard input is closed")
            return cls(sys.stdin.buffer, question=_question(prompt))
        path = Path(prompt_file)
        try:
            file = stack.enter_context(path.open("rb"))
        except (OSError, ValueError) as error:  # a name with a null character is a ValueError
            reason = error.strerror if isinstance(error, OSError) else error
            raise RequestError(f"--prompt-file {prompt_file}: {reason}") from None
        status = os.fstat(file.fileno())
        if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and not file.isatty()):
            raise RequestError(f"--prompt-file {prompt_file} is a device: give a file or a stream of text")
        bytes_total = status.st_size if stat.S_ISREG(status.st_mode) else None
        return cls(file, bytes_total=bytes_total, question=_question(prompt))

    def text_blocks(self) -> Iterator[str]:
        """Yield blocks of the prompt as soon as they arrive.

        Raises: SessionError where it is no UTF-8 or cannot be read any more, behind all text before; and if the prompt
            was empty.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        decoded = 0  # bytes
        is_at_end = False
        while not is_at_end:
            block = self.text if self.file is None and not self.bytes_read else self._read()
            self.bytes_read += len(block)
            is_at_end = not block
            try:
                text = decoder.decode(block, final=is_at_end)
                self._file_characters += len(text)
                yield text
            except UnicodeDecodeError as error:
                yield error.object[: error.start].decode()
                raise SessionError(
                    f"the {self.name} is not UTF-8 at byte {decoded + error.start}, counted from 0: convert it first"
                ) from None
            decoded = self.bytes_read - len(decoder.getstate()[0])
        if self.question:
            self._is_behind_file = True
            yield self.question
        elif not self.bytes_read:
            raise SessionError(f"the {self.name} is empty: give at least one character")

    def cut_behind_file(self, turn: str, prompt: str) -> Iterator[str]:
        """Yield a turn that holds the prompt, cut where the file ends in it, to know how many tokens come before."""
        file = prompt[: self._file_characters].strip() if self.question else ""
        end = turn.find(file) + len(file)
        if file and end >= len(file):
            yield turn[:end]
            self._is_behind_file, turn = True, turn[end:]
        yield turn

    def file_has_ended(self) -> bool:
        """True once the next text comes behind the file, the first time that it is asked then."""
        is_behind, self._is_behind_file = self._is_behind_file, False
        return is_behind

    def _read(self) -> bytes:
        if self.file is None:
            return b""
        # read1, where there is one, gives what a pipe holds instead of waiting for a full block.
        read = getattr(self.file, "read1", self.file.read)
        try:
            with raising():
                block: bytes = read(_BLOCK_BYTES)
        except OSError as error:
            raise SessionError(
                f"the {self.name} cannot be read after byte {self.bytes_read}: {error.strerror}"
            ) from None
        return block

    def tokens_expected(self) -> float | None:
        """Estimate the tokens of the whole prompt from what was read so far. None for a pipe."""
        return self.tokens_read * self.bytes_total / self.bytes_read if self.bytes_total and self.bytes_read else None


class Context(Protocol):
    """What a prompt comes behind. A session is one."""

    @property
    def position(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int32]: ...


def prompt_ids(
    source: PromptSource,
    tokenizer: Tokenizer,
    session: Context,
    *,
    chat: Chat | None,
    literal: bool,
    fills: bool,
    stop_tokens: Collection[int],
) -> Iterator[list[int]]:
    """Yield the tokens of the prompt, some at a time.

    Args: literal: special tokens that the prompt spells are ordinary text.
    fills: give all tokens before an error, also those that could still have changed, and of a prompt that exceeds
        the context as many as fit.
    Raises: SessionError where the prompt is no UTF-8, empty, cannot be read or exceeds the context; as `Chat.texts`.
    """
    goes_on = session.position > 0
    texts = _texts(source, tokenizer, chat=chat, literal=literal, goes_on=goes_on)
    last = int(session.tokens[-1]) if goes_on else None
    if chat is not None and last is not None and last in stop_tokens:  # the context holds the end of the answer already
        texts = _without_prefix(texts, tokenizer.token(last) or "")
    encoder = tokenizer.stream_encoder(add_special_tokens=chat is None and not goes_on)
    pieces = _encoded(encoder, source, texts, fills=fills)
    position, room = session.position, session.max_context - session.position
    for ids in pieces:
        earlier = source.tokens_read
        source.tokens_read += len(ids)
        if source.tokens_read > room:
            if fills:
                yield ids[: room - earlier]
            raise SessionError(
                f"the prompt needs a context of at least {position + source.tokens_read} tokens, and max_context is "
                f"{session.max_context}: choose a larger --max-context"
            )
        yield ids


def _question(prompt: str | None) -> str:
    """The text behind a file. Raises: RequestError if a shell has passed bytes that are no UTF-8."""
    if not prompt:
        return ""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError("--prompt is not UTF-8 text: convert it first") from None
    return f"\n{prompt}"


def _texts(
    source: PromptSource, tokenizer: Tokenizer, *, chat: Chat | None, literal: bool, goes_on: bool
) -> Iterator[tuple[str, bool]]:
    """The text of the prompt in pieces, and whether each is literal."""
    if chat is None:
        return ((block, literal) for block in source.text_blocks())
    from ..runtime.literal import LiteralMarks

    return chat.texts(source, goes_on=goes_on, marks=LiteralMarks(tokenizer) if literal else None)


def _without_prefix(texts: Iterator[tuple[str, bool]], prefix: str) -> Iterator[tuple[str, bool]]:
    text, literal = next(texts, ("", False))
    yield text.removeprefix(prefix), literal
    yield from texts


def _encoded(
    encoder: StreamEncoder, source: PromptSource, pieces: Iterable[tuple[str, bool]], *, fills: bool
) -> Iterator[list[int]]:
    try:
        for piece, literal in pieces:
            if source.file_has_ended():
                yield encoder.settle()
                source.file_tokens = source.tokens_read
            yield encoder.push(piece, literal=literal)
    except SessionError:
        if fills and source.bytes_read:
            yield encoder.finish()
        raise
    yield encoder.finish()
