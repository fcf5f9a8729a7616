"""Token ids in lists, arrays and tensors of many kinds, against the plain list: taken as ids or refused in one line."""

from __future__ import annotations

import array
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sala_export.errors import SessionError
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

IDS = [7, 93, 127, 7, 3]


class OnDevice:
    """A tensor on a GPU, as PyTorch and CuPy have them: it is read as a list alone."""

    shape = (len(IDS),)

    def __array__(self, *arguments: Any, **options: Any) -> NDArray[Any]:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self) -> list[int]:
        return list(IDS)


class Jax:
    """An array that is read as NumPy's alone. Iterating it gives arrays without a dimension."""

    shape = (len(IDS),)

    def __array__(self, dtype: Any = None) -> NDArray[Any]:
        return np.array(IDS, dtype)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("an array is read whole")


class OnlyDlpack:
    """An array that gives its memory alone."""

    def __dlpack__(self, **options: Any) -> object:
        return np.array(IDS).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


WHOLE: dict[str, Callable[[], Any]] = {
    **{
        f"torch {name}": lambda name=name: torch.tensor(IDS, dtype=getattr(torch, name))
        for name in ("int8", "uint8", "int16", "int32", "int64")
    },
    **{
        f"numpy {name}": lambda name=name: np.array(IDS, name)
        for name in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", "O")
    },
    "every other of a tensor": lambda: torch.tensor([each for id_ in IDS for each in (id_, 0)])[::2],
    "tensor on a GPU": OnDevice,
    "array of another framework": Jax,
    "array of DLPack": OnlyDlpack,
    "array.array": lambda: array.array("q", IDS),
    "memory of numbers": lambda: memoryview(array.array("i", IDS)),
    "tuple": lambda: tuple(IDS),
    "deque": lambda: deque(IDS),
    "list of NumPy's numbers of two types": lambda: [np.uint64(IDS[0]), *map(np.int8, IDS[1:])],
    "list of tensors without a dimension": lambda: list(torch.tensor(IDS)),
    "one row of a tensor": lambda: torch.tensor([IDS]),
    "one row of a list": lambda: [IDS],
    "list of one tensor": lambda: [torch.tensor(IDS)],
    "mapping": lambda: {"input_ids": IDS},
    "output of a tokenizer": lambda: UserDict(input_ids=IDS, attention_mask=[1] * len(IDS), token_type_ids=[0] * 5),
    "output of a tokenizer as tensors": lambda: UserDict(
        input_ids=torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS), dtype=torch.int64)
    ),
    "mask of truth values": lambda: {"input_ids": np.array(IDS), "attention_mask": np.ones(len(IDS), bool)},
}


@pytest.fixture
def session(model: Model) -> Session:
    return model.session(max_context=64)


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_ids_are_taken_from_whatever_holds_them(session: Session, make: Callable[[], Any]) -> None:
    session.prefill(make())
    assert session.tokens.tolist() == IDS
    session.prefill(piece for piece in (1, make(), np.array(2), make()))
    assert session.tokens.tolist() == [*IDS, 1, *IDS, 2, *IDS]


def test_output_of_the_tokenizer_of_transformers_is_taken(session: Session) -> None:
    from transformers import BatchEncoding

    session.prefill(BatchEncoding({"input_ids": [IDS], "attention_mask": [[1] * len(IDS)]}, tensor_type="pt"))
    assert session.tokens.tolist() == IDS


MASKED = [0, 0, 1, 1, 1]
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two rows of a list": (lambda: [IDS, IDS], "a batch of 2 rows"),
    "rows of two lengths": (lambda: [IDS, [1]], "a batch of 2 rows"),
    "two rows of a tensor": (lambda: torch.tensor([IDS, IDS]), "a batch of 2 rows"),
    "three tensors": (lambda: [torch.tensor(IDS)] * 3, "a batch of 3 rows"),
    "column": (lambda: np.array(IDS).reshape(-1, 1), "a batch of 5 rows"),
    "batch of a tokenizer": (lambda: UserDict(input_ids=[IDS, IDS]), "a batch of 2 rows"),
    "list of texts": (lambda: ["What?", "Why?"], "a list of 2 texts"),
    "three dimensions": (lambda: np.ones((1, 1, 4), int), r"int64 \[1, 1, 4\], expected integers"),
    "tensor of floats": (lambda: torch.ones(3), r"float32 \[3\], expected integers"),
    "tensor of bfloat16": (lambda: torch.ones(3, dtype=torch.bfloat16), "expected integers"),
    "tensor of truth values": (lambda: torch.tensor([True, False]), r"bool \[2\], expected integers"),
    "list with a truth value": (lambda: [1, True], "is True of type bool, expected integers"),
    "tensor without memory": (lambda: torch.ones(3, dtype=torch.int64, device="meta"), "cannot be read as an array"),
    "array of texts": (lambda: np.array(["a", "b"]), "expected integers"),
    "array of objects that are texts": (lambda: np.array(["a", "b"], object), r"object \[2\], expected integers"),
    "uint64 beyond int32": (lambda: np.array([2**63], np.uint64), "exceeds 2147483647"),
    "list beyond int64": (lambda: [1, 2**64], "exceeds 2147483647"),
    "mapping without ids": (lambda: {"text": "a", "labels": [1]}, r"a mapping of \['text', 'labels'\], expected one"),
    "mapping with text as ids": (lambda: {"input_ids": "abc"}, "input_ids of the prompt is 'abc'"),
    "padding": (lambda: {"input_ids": IDS, "attention_mask": MASKED}, "hides 2 of 5 tokens"),
    "mask of another length": (lambda: {"input_ids": IDS, "attention_mask": [1]}, "a 1 for each of 5 tokens"),
    "mask that is ragged": (lambda: {"input_ids": IDS, "attention_mask": [[1], [1, 1]]}, "attention_mask"),
    "set": (lambda: {1, 2}, "a prompt is a set, which has no order"),
    "masked array": (lambda: np.ma.array(IDS, mask=MASKED), "an array that hides some of its numbers"),
    "one tensor without a dimension": (lambda: torch.tensor(5), r"int64 \[\], expected integers"),
    "number of NumPy": (lambda: np.int64(5), r"int64 \[\], expected integers"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_prompt_is_refused_in_one_line(session: Session, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SessionError, match=message) as error:
        session.prefill(make())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250
    assert session.position == 0


@pytest.mark.parametrize("prompt", [[], [[]], np.zeros((0, 4), int), torch.zeros(1, 0), {"input_ids": []}], ids=repr)
def test_prompt_of_no_ids_is_empty(session: Session, prompt: Any) -> None:
    with pytest.raises(SessionError, match="no tokens"):
        session.prefill(prompt)
