"""Types of the values in `bundle.json`, and how its text is parsed: as the runtime in C++ does both."""

from __future__ import annotations

import json
import struct
from typing import Annotated, Any, NoReturn, TypeAlias

from pydantic import AfterValidator, Field

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MOST_DIMENSIONS = 8
"""Limit of the dimensions of a tensor, as in TensorRT."""


def _inside(path: str) -> str:
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} lies outside the bundle, or is not written in the shortest way")
    return path


def _fp32(value: float) -> float:
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        rounded = None
    if rounded != value:
        raise ValueError(f"{value!r} is not an fp32 number")
    return value


Natural: TypeAlias = Annotated[int, Field(ge=0, le=INT64_MAX)]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=INT64_MAX)]
Extent: TypeAlias = Annotated[int, Field(ge=1, le=INT32_MAX)]
"""Largest size of a dimension that positions of a sequence count."""
Shape: TypeAlias = Annotated[tuple[Positive, ...], Field(max_length=MOST_DIMENSIONS)]
Fp32: TypeAlias = Annotated[float, AfterValidator(_fp32)]
"""Exactly an fp32 number."""
Sha256: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
PathInside: TypeAlias = Annotated[str, AfterValidator(_inside)]
"""Path relative to the bundle: names with one `/` between each two, so that two paths never are one file."""


def parse(text: bytes) -> Any:
    """Parse text in UTF-8 without a byte order mark as JSON.

    Raises: ValueError or RecursionError, also for an object with two members of one name, and for a number that fp64
    does not hold, NaN included.
    """
    return json.loads(
        text.decode(),
        object_pairs_hook=_object,
        parse_constant=_refuse,
        parse_float=_finite,
        parse_int=_integer,
    )


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(members)
    if len(result) != len(members):
        raise ValueError("an object has two members of one name")
    return result


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that fp64 holds")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _refuse(text)


def _integer(text: str) -> int:
    _finite(text)
    return int(text)
