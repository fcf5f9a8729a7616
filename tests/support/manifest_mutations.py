"""Texts that are nearly a bundle.json, each from its seed: the same number gives the same text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

TAKEN_MANIFESTS = ("plain.json", "no-weights.json", "no-engine.json", "quantised.json", "fixed.json", "words.json")
"""Files of runtime/fuzz/corpus/manifest that are taken: small manifests of every form. All others are refused."""
_RAW = "\u0001raw "
"""Begins a string in whose place the rest of it stands in the text, as no JSON writer writes it."""
_NUMBERS = (
    *(-1, 0, 1, 2, 8, 63, 65, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
    *(-(2**63), -(2**63) - 1, 0.1, 0.5, 1.0, 4.0, -0.0, 1e300, 5e-324, 3.4028234663852886e38, 3.402823669209385e38),
)
_RAW_VALUES = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0", "1E2", "01", "+1", ".5", "1.", "0x1", "True", "nul"),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\x00"', '"\t"', '"\\x"', "'a'", "[1,]", "{}{}", "/**/1"),
    *("1" * 308, "1" * 400, "1" * 5000, "0." + "0" * 5000 + "1", "[" * 63 + "]" * 63, "[" * 5000 + "]" * 5000),
)
_STRINGS = (
    *("", " ", ".", "..", "a/../b", "./a", "a//b", "a/", "/etc/passwd", "\0", "a\0b", "é", "\u2028", "\x1b[31m", "\n"),
    *("a" * 64, "A" * 64, "0" * 63, "g" * 64, "٣" * 64, "0" * 64 + "\n", "a" * 5000, "\U0001f600", "\ufeff"),
    *("float32", "float4_e2m1fn", "int8", "uint8", "bfloat16", "float8_e4m3fn", "fp32", "fp16", "bf16", "int4"),
    *("int32", "mxfp8", "word_columns"),
    *("batch", "tokens", "capacity", "capacity_k1", "logits", "input_ids", "rtx", "tensorrt", "minicpm4", "4"),
)
_BYTES = (b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"[", b",", b":", b"\r\n")

_Slot = tuple[Any, Any]
"""A container, and the place of a member in it."""


def mutant(bases: Sequence[bytes], seed: int) -> bytes:
    """A changed text of one of `bases`, JSON documents, with one to three changes of its structure or its bytes."""
    chance = random.Random(seed)
    base = chance.choice(bases)
    if chance.random() < 0.15:
        return _changed_bytes(base, chance)
    document = json.loads(base)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(_CHANGES)(document, chance)
    text = _written(document)
    return _changed_bytes(text, chance) if chance.random() < 0.05 else text


def _written(document: Any) -> bytes:
    pieces = json.dumps(document, ensure_ascii=False).split(json.dumps(_RAW)[:-1])
    text = pieces[0]
    for piece in pieces[1:]:
        index, _, rest = piece.partition('"')
        text += _RAW_VALUES[int(index)] + rest
    return text.encode("utf-8", "surrogatepass")


def _slot(document: Any, chance: random.Random) -> _Slot:
    """A container and the place of a member, found from the root downwards: each field is as likely as a long list."""
    at: _Slot = (document, chance.choice(list(document)))
    while chance.random() < 0.85:
        value = at[0][at[1]]
        if not isinstance(value, dict | list) or not value:
            break
        at = (value, chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value)))
    return at


def _value(document: Any, chance: random.Random) -> Any:
    other, place = _slot(document, chance)
    return chance.choice(
        (
            chance.choice(_NUMBERS),
            chance.choice(_STRINGS),
            f"{_RAW}{chance.randrange(len(_RAW_VALUES))}",
            chance.choice((None, True, False, [], {}, [0], {"a": 1})),
            json.loads(json.dumps(other[place])),
        )
    )


def _set(document: Any, chance: random.Random) -> None:
    if document:
        container, place = _slot(document, chance)
        container[place] = _value(document, chance)


def _near(document: Any, chance: random.Random) -> None:
    """Another value of the same type."""
    if not document:
        return
    container, place = _slot(document, chance)
    value = container[place]
    if isinstance(value, bool):
        container[place] = not value
    elif isinstance(value, int | float):
        container[place] = chance.choice((*_NUMBERS, value + 1, value - 1, float(value), str(value), -value, value * 2))
    elif isinstance(value, str):
        container[place] = chance.choice((*_STRINGS, value + "x", value[:-1], value.upper(), [value], "./" + value))
    else:
        _resize(value, chance)


def _resize(value: Any, chance: random.Random) -> None:
    if isinstance(value, list) and value:
        chance.choice((value.pop, value.reverse, lambda: value.extend(value[:]), lambda: value.append(value[0])))()
    elif isinstance(value, dict):
        value[chance.choice(("unknown", "", "é", "a\nb", "batch", "path", "decode"))] = chance.choice(_NUMBERS)


def _delete(document: Any, chance: random.Random) -> None:
    if document:
        container, place = _slot(document, chance)
        del container[place]


def _duplicate(document: Any, chance: random.Random) -> None:
    """An element again, or a member under another name."""
    if not document:
        return
    container, place = _slot(document, chance)
    if isinstance(container, list):
        container.insert(chance.randrange(len(container) + 1), container[place])
    else:
        container[chance.choice((f"{place}2", str(place).upper(), *_STRINGS))] = container[place]


def _swap(document: Any, chance: random.Random) -> None:
    if not document:
        return
    (first, at), (second, to) = _slot(document, chance), _slot(document, chance)
    one, other = json.loads(json.dumps(first[at])), json.loads(json.dumps(second[to]))
    second[to] = one
    if at in first if isinstance(first, dict) else at < len(first):
        first[at] = other


_CHANGES: tuple[Callable[[Any, random.Random], None], ...] = (_set, _near, _near, _near, _delete, _duplicate, _swap)


def _changed_bytes(text: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(text) + 1)
    to = min(len(text), at + chance.choice((1, 1, 2, 5, 50)))
    return chance.choice(
        (
            text[:at] + bytes([chance.randrange(256)]) + text[to:],
            text[:at] + chance.choice(_BYTES) + text[at:],
            text[:at] + text[to:],
            text[:to] + text[at:],
            text[:at],
            chance.choice(_BYTES) + text,
            text + chance.choice(_BYTES),
            text.replace(b"{", b'{"' + chance.choice((b"path", b"created_by", b"a")) + b'": 1, ', 1),
            # The last member of an object once more, in front of it.
            text.replace(b'"schema_version"', b'"schema_version": 4, "schema_version"', 1),
            text.replace(b'"created_by"', b'"created_by": "me", "created_b\\u0079"', 1),
        )
    )
