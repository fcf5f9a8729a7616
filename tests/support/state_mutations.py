"""Mutations of state files that know their structure, so that most get past the first check."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

_NO_HASH = "0" * 64

Header = dict[str, Any]

_VALUES: list[Any] = [
    *(0, 1, -1, 2, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 1e300, 1.5, True, None, "", "0", "-1", "21", " 21", "1e3"),
    *(
        [],
        [0],
        [1, 2, 3],
        [2**62, 2**62],
        [0, 2**63 - 1],
        {},
        {"a": []},
        "F32",
        "I32",
        "BF16",
        "F99",
        "\u0000\u001b[2J",
    ),
    "9" * 5000,
]


def parts(state: bytes) -> tuple[Header, bytes]:
    """The header and the data of a state."""
    end = 8 + int.from_bytes(state[:8], "little")
    return json.loads(state[8:end]), state[end:]


def put_together(header: Header, data: bytes) -> bytes:
    """A state of these parts whose hash is right, if its header has one."""
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and "sha256" in metadata:
        metadata["sha256"] = _NO_HASH
    text = json.dumps(header, separators=(",", ":")).encode()
    return with_hash(len(text).to_bytes(8, "little") + text + data)


def with_hash(state: bytes) -> bytes:
    """The state with the hash that fits it, if it has the place for one."""
    at = state.find(b'"sha256":"') + 10
    if at < 10 or state[at + 64 : at + 65] != b'"':
        return state
    state = state[:at] + _NO_HASH.encode() + state[at + 64 :]
    return state[:at] + hashlib.sha256(state).hexdigest().encode() + state[at + 64 :]


def mutated(state: bytes, choose: random.Random) -> bytes:
    """One mutation of a state; two of three have the hash that fits them."""
    return choose.choice(_MUTATIONS)(state, choose)


def _flipped_bit(state: bytes, choose: random.Random) -> bytes:
    changed = bytearray(state)
    changed[choose.randrange(len(state))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _flipped_bit_of_header(state: bytes, choose: random.Random) -> bytes:
    changed = bytearray(state)
    changed[choose.randrange(8 + int.from_bytes(state[:8], "little"))] ^= 1 << choose.randrange(8)
    return with_hash(bytes(changed))


def _cut_or_longer(state: bytes, choose: random.Random) -> bytes:
    return with_hash(choose.choice([state[: choose.randrange(len(state))], state + choose.randbytes(9)]))


def _other_length(state: bytes, choose: random.Random) -> bytes:
    length = choose.choice([0, 1, 7, 2**24, 2**31, 2**63, 2**64 - 1, choose.randrange(len(state))])
    return length.to_bytes(8, "little") + state[8:]


def _other_metadata(state: bytes, choose: random.Random) -> bytes:
    header, data = parts(state)
    key = choose.choice([*header["__metadata__"], "new"])
    header["__metadata__"][key] = choose.choice(_VALUES)
    return _text_of(header, data, choose)


def _other_tensor(state: bytes, choose: random.Random) -> bytes:
    header, data = parts(state)
    tensor = header[choose.choice([name for name in header if name != "__metadata__"])]
    tensor[choose.choice(["dtype", "shape", "data_offsets", "new"])] = choose.choice(_VALUES)
    return put_together(header, data)


def _other_names(state: bytes, choose: random.Random) -> bytes:
    header, data = parts(state)
    first, second = choose.sample(sorted(header), 2)
    if choose.random() < 0.5:
        header[first], header[second] = header[second], header[first]
    else:
        header[choose.choice([second, "new", "", "past_key_values.9.key"])] = header.pop(first)
    return put_together(header, data)


def _other_number(state: bytes, choose: random.Random) -> bytes:
    """One number of a shape or an offset, a little or very different."""
    header, data = parts(state)
    tensor = header[choose.choice([name for name in header if name != "__metadata__"])]
    numbers = tensor[choose.choice(["shape", "data_offsets"])]
    at = choose.randrange(len(numbers))
    numbers[at] = choose.choice([numbers[at] + 1, numbers[at] - 1, -numbers[at], 2**31, 2**62, 2**63, 0])
    return put_together(header, data)


def _other_data(state: bytes, choose: random.Random) -> bytes:
    """Token ids, logits and caches of any bits, NaN among them."""
    header, data = parts(state)
    at = choose.choice([choose.randrange(64), choose.randrange(len(data))])
    return put_together(header, data[:at] + choose.randbytes(8)[: len(data) - at] + data[at + 8 :])


def _text_of(header: Header, data: bytes, choose: random.Random) -> bytes:
    whole = put_together(header, data)
    if choose.random() < 0.8:
        return whole
    odd = choose.choice([b'{"a":' * 9000, b"\xff", b"\x00", b'"sha256":"', b"[" * 90000, b"1e999", b"//"])
    at = choose.randrange(8, 8 + int.from_bytes(whole[:8], "little"))
    text = whole[8:at] + odd + whole[at:]
    return (int.from_bytes(whole[:8], "little") + len(odd)).to_bytes(8, "little") + text


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flipped_bit, _flipped_bit_of_header, _cut_or_longer, _other_length, _other_metadata),
    *(_other_tensor, _other_names, _other_number, _other_data),
)
