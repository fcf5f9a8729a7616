"""Token ids in whatever holds them: lists, arrays and tensors of any framework, the output of a tokenizer.

No framework is imported to find out: an array is what can be read as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionError
from .options import shown


class ArrayLike(Protocol):
    """An array or tensor: of NumPy, PyTorch, JAX, TensorFlow and others."""

    def __array__(self) -> NDArray[Any]: ...


TokenIds = Sequence[int] | NDArray[np.integer] | ArrayLike | Mapping[str, Any]
"""Ids of consecutive tokens, also with a dimension of length 1 in front, or a mapping that has them as `input_ids`."""


def held_ids(value: object) -> NDArray[np.int32] | None:
    """Token ids of a value that holds all of them, int32 [tokens]. None if it is none, an iterator for example.

    Raises: SessionError if the ids are no integers of one dimension, if there are two rows or more, if they exceed
        int32, or if a mapping lacks `input_ids` or has an `attention_mask` that hides some.
    """
    if isinstance(value, Mapping):
        return _ids_of_mapping(value)
    if isinstance(value, Set):
        raise SessionError("a prompt is a set, which has no order: give a list of token ids")
    if np.ma.is_masked(value):
        raise SessionError("a prompt is an array that hides some of its numbers: give the tokens that count alone")
    array = _as_array(value)
    if array is None:
        return _ids_of_list(value)
    ids = _ids_of_list(array.tolist()) if array.dtype == object else None
    return _ids_of_array(array) if ids is None else ids


def known_ids(token_ids: object) -> NDArray[np.int32]:
    """As `held_ids`, of an argument `token_ids` that must be held in memory. Raises: SessionError also if it is not."""
    ids = held_ids(token_ids)
    if ids is None:
        raise SessionError(f"token_ids is of type {type(token_ids).__name__}, expected token ids held in memory")
    return ids


def piece_ids(piece: object) -> NDArray[np.int32]:
    """Token ids of one piece of a prompt, which may be one id, int32 [tokens]. Raises: SessionError as `held_ids`."""
    scalar = _as_array(piece) if _has_no_dimension(piece) else None
    if scalar is not None:
        ids: NDArray[np.int32] | None = _ids_of_array(scalar.reshape(1))
    else:
        ids = _ids_of_list([piece]) if _is_whole_number(type(piece)) else held_ids(piece)
    if ids is None:
        kind = type(piece).__name__
        raise SessionError(
            f"a piece of the prompt is {shown(piece)} of type {kind}, expected integers [tokens], one integer or text"
        )
    return ids


def _ids_of_mapping(mapping: Mapping[Any, Any]) -> NDArray[np.int32]:
    if "input_ids" not in mapping:
        raise SessionError(f"a prompt is a mapping of {shown([*mapping])}, expected one that has input_ids")
    ids = held_ids(mapping["input_ids"])
    if ids is None:
        raise SessionError(f"input_ids of the prompt is {shown(mapping['input_ids'])}, expected integers [tokens]")
    if (mask := mapping.get("attention_mask")) is not None:
        _check_mask(mask, len(ids))
    return ids


def _check_mask(mask: object, tokens: int) -> None:
    """Refuse a mask that hides a token: a session has no padding."""
    try:
        array = np.asarray(mask) if (read := _as_array(mask)) is None else read
    except ValueError:
        raise SessionError("attention_mask of the prompt is no array, expected a 1 for each token") from None
    if array.size != tokens or array.dtype.kind not in "biuf":
        raise SessionError(
            f"attention_mask of the prompt is {array.dtype} {list(array.shape)}, "
            f"expected a 1 for each of {tokens} tokens"
        )
    if hidden := int(np.count_nonzero(array != 1)):
        raise SessionError(
            f"attention_mask of the prompt hides {hidden} of {tokens} tokens, and a session has no padding: "
            "give the tokens that count alone"
        )


def _as_array(value: object) -> NDArray[Any] | None:
    """The value as an array, if it can be read as one. None if it is no array.

    Some refuse the first way, for example tensors on a GPU, and copy themselves to a list.
    """
    ways: dict[str, Callable[[Any], NDArray[Any]]] = {
        "__array__": np.asarray,
        "__dlpack__": np.from_dlpack,
        "tolist": lambda tensor: np.asarray(tensor.tolist()),
    }
    refusal: Exception | None = None
    for attribute, read in ways.items():
        if isinstance(value, type) or not hasattr(value, attribute):
            continue
        try:
            return read(value)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            refusal = error
    if refusal is not None:
        raise SessionError(
            f"a prompt of type {type(value).__name__} cannot be read as an array: {str(refusal).split(chr(10))[0]}"
        )
    return None


def _ids_of_list(values: object) -> NDArray[np.int32] | None:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return None
    if all(map(_is_whole_number, set(map(type, values)))):
        try:
            return _int32(np.fromiter(map(int, values), np.int64, len(values)))
        except OverflowError:
            raise _beyond_int32() from None
    if all(_has_no_dimension(each) for each in values):
        return np.concatenate([piece_ids(each) for each in values])
    if not all(map(_is_row, values)):
        return None
    if len(values) > 1:
        raise _batch(len(values))
    return held_ids(values[0])


def _ids_of_array(array: NDArray[Any]) -> NDArray[np.int32]:
    if array.ndim == 2 and array.shape[0] > 1:
        raise _batch(array.shape[0])
    row = array[0] if array.ndim == 2 and len(array) else array
    if row.size and (row.ndim != 1 or row.dtype.kind not in "iu"):
        raise SessionError(
            f"a prompt of token ids is {array.dtype} {list(array.shape)}, expected integers [tokens], or [1, tokens]"
        )
    return _int32(row.reshape(-1))


def _int32(array: NDArray[Any]) -> NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise _beyond_int32()
    return np.ascontiguousarray(array, np.int32)


def _beyond_int32() -> SessionError:
    return SessionError(f"a token id of the prompt exceeds {np.iinfo(np.int32).max}: use the tokenizer of this model")


def _batch(rows: int) -> SessionError:
    return SessionError(
        f"a prompt is a batch of {rows} rows, and a session takes one prompt: make a session for each row"
    )


def _is_whole_number(kind: type) -> bool:
    return issubclass(kind, int | np.integer) and not issubclass(kind, bool)


def _has_no_dimension(value: object) -> bool:
    """True for a number, and for an array or a tensor that holds one."""
    return _is_whole_number(type(value)) or getattr(value, "shape", None) == ()


def _is_row(value: object) -> bool:
    """True for a list or an array with a dimension, as a batch has them."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        return False
    return isinstance(value, Sequence) or bool(getattr(value, "shape", ()))
