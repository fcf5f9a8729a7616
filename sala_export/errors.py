"""Errors that a user can act on: one line saying what is wrong, where, and what to do."""

from __future__ import annotations

import re

_SHORT_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Control characters; what turns the direction of text; separators of lines and paragraphs; halves of surrogate pairs.
# The C++ runtime escapes the same in runtime/src/base/status.cc.
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_IN_A_LINE = re.compile(f"[{_UNPRINTABLE}]")
_NOT_IN_A_TEXT = re.compile(f"(?![\n\t])[{_UNPRINTABLE}]")

_LONGEST_MESSAGE = 4000


def printable(text: str) -> str:
    r"""Make text one line that does nothing to a terminal: what is no visible character comes out as an escape.

    For example, the escape character becomes `\x1b` and a right-to-left override `\u202e`. A byte of a file name that
    is no UTF-8 comes out as that byte, `\xff`. Other text stays as it is.
    """
    return _NOT_IN_A_LINE.sub(_escape, text)


def printable_text(text: str) -> str:
    """Make text do nothing to a terminal, as `printable` does, but keep its lines and tabulators."""
    return _NOT_IN_A_TEXT.sub(_escape, text)


def shortened(message: str) -> str:
    """A message without its middle if a value in it is long, so that what is wrong and what to do stay in sight."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 4 :]}"


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    # Python's stand-in for a byte that is no UTF-8.
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return _SHORT_ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


class SalaError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1
    code = ""
    """Name of an error of the C++ runtime, `OutOfMemory` for example (runtime/include/sala/status.h). Else empty."""

    def __init__(self, message: str) -> None:
        """Args: message: one line that says what is wrong, where, and what to do.

        `printable` makes it one, and of more than 4000 characters the middle is left out.
        """
        super().__init__(printable(shortened(message)))


class InputError(SalaError):
    """Input from the user is wrong, and nothing was written."""

    exit_code = 2


class ConfigError(InputError):
    """A config.json or recipe field is missing, malformed or contradictory."""


class CheckpointError(InputError):
    """A checkpoint file or tensor is missing, truncated or of the wrong shape."""


class ShapeError(InputError):
    """A tensor's shape, type or an attribute breaks an operator's contract."""


class UnsupportedError(InputError):
    """A valid request that this toolkit, its kernels or the GPU cannot serve."""


class RequestError(InputError):
    """The options of a command contradict each other, or the machine lacks room for them."""


class DiskFullError(RequestError):
    """A disk has no room for what is to be written."""


class BundleError(InputError):
    """A bundle is missing, damaged or of another schema version."""


class SessionError(InputError):
    """A session cannot take a prompt, token id or option. It is as it was, or at a chunk border."""


class StateError(InputError):
    """A saved session is missing, damaged, of another model or precision, or cannot be written."""


class ExportError(SalaError):
    """Writing the ONNX graph failed."""


class BuildError(SalaError):
    """TensorRT refused or failed to build an engine."""


class RunError(SalaError):
    """A step of the model failed, or there is no memory for it."""
