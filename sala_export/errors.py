"""Errors that a user can act on: one line saying what is wrong, where, and what to do."""

from __future__ import annotations


class SalaError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


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


def printable(text: str) -> str:
    """Escape control characters, line ends included."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_text(text: str) -> str:
    """As `printable`, but line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
