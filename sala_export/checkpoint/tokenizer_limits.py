"""Refuses tokenizers that make much of little: forty steps that double a text fill any memory with the first prompt.

Each kind of step has a factor: what it makes of a text is at most so many times as long, in bytes of UTF-8. What a step
puts in front of a text counts for each byte, because added tokens and earlier steps cut texts into pieces of a byte.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError

Spec = Mapping[str, Any]
"""A tokenizer.json, or a part of one."""

MOST_BYTES = 1 << 27
"""That one text may become. The library takes 17 bytes of memory for each, and 300 for a token."""
_MOST_GROWTH = 200
"""Of a text by all steps together. It is 12 for Llama 2 and MiniCPM, 6 for Qwen, 132 with a charsmap."""
_MOST_ADDED_TOKENS = 1 << 16
"""Around one text."""

PARTS: Mapping[str, str] = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""Components of a tokenizer.json, and the name of the list in a Sequence of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """How many times as long a text may become, in bytes of UTF-8."""

    encoding: int = 1
    """Factor of a text that is encoded."""
    decoding: int = 1
    """Factor of the spellings of tokens that are decoded. Each spelling counts as a byte at least."""


UNCHANGED = Growth()


def steps(component: Spec | None, name: str) -> Iterator[Spec]:
    """Yield the steps of a component that may be missing or a Sequence. Args: name: of the list in a Sequence."""
    if component is None:
        return
    if component["type"] == "Sequence":
        for part in component[name]:
            yield from steps(part, name)
    else:
        yield component


def limited_growth(spec: Spec, where: str) -> Growth:
    """The growth by the steps of a tokenizer.json as the library writes it.

    Raises: BundleError naming `where` if it is large, or not known.
    """
    added = sum(_template_ids(step) for step in steps(spec["post_processor"], PARTS["post_processor"]))
    if added > _MOST_ADDED_TOKENS:
        raise BundleError(f"{where}: its post_processor puts {added} tokens around each text")
    encoding = _product(spec, ("normalizer", "pre_tokenizer", "post_processor"), where)
    return Growth(encoding=encoding, decoding=_product(spec, ("decoder",), where))


def _product(spec: Spec, components: tuple[str, ...], where: str) -> int:
    growth = 1
    for component in components:
        for step in steps(spec[component], PARTS[component]):
            factor = _FACTORS[component].get(step["type"])
            if factor is None:
                raise BundleError(f"{where}: its {component} has a step {step['type']}, which is not served")
            growth *= factor if isinstance(factor, int) else factor(step)
            if growth > _MOST_GROWTH:
                raise BundleError(
                    f"{where}: the steps up to its {component} may make a text {growth} times as long, at most "
                    f"{_MOST_GROWTH} times is served: use the tokenizer of the published model"
                )
    return growth


def _of_replace(step: Spec) -> int:
    content = len(step["content"].encode())
    pattern = len(step["pattern"].get("String", "").encode())
    # An expression, like an empty pattern, may match before and behind each byte, and leave it.
    return max(1, -(-content // pattern)) if pattern else 1 + 2 * content


def _of_charsmap(step: Spec) -> int:
    """A trie, with its size before it, then the replacements. Each takes the place of a character."""
    charsmap = base64.b64decode(step["precompiled_charsmap"])
    replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(1, *map(len, replacements.split(b"\0")))


def _of_prepend(step: Spec) -> int:
    return 1 + len(step["prepend"].encode())


def _of_metaspace(step: Spec) -> int:
    return 1 + len(step["replacement"].encode())


def _of_byte_level(step: Spec) -> int:
    """Each byte becomes a character of two bytes at most, and so does a space in front."""
    return 4 if step["add_prefix_space"] else 2


def _of_template(step: Spec) -> int:
    """How often the template repeats the text."""
    return max(1, sum("Sequence" in piece for piece in step["single"]))


def _template_ids(step: Spec) -> int:
    if step["type"] != "TemplateProcessing":
        return 0
    special: dict[str, Any] = step["special_tokens"]
    names = (piece.get("SpecialToken", {}).get("id") for piece in step["single"])
    # The library takes templates whose tokens it does not know.
    return sum(len(special[name]["ids"]) for name in names if name in special)


_CUTTING = "BertPreTokenizer CharDelimiterSplit Digits FixedLength Punctuation Split UnicodeScripts Whitespace"
_FACTORS: Mapping[str, Mapping[str, int | Callable[[Spec], int]]] = {
    "normalizer": {
        **dict.fromkeys(("Nmt", "Strip", "StripAccents"), 1),
        # The most that characters of Unicode grow, rounded up.
        "Lowercase": 2,
        **dict.fromkeys(("NFC", "NFD"), 3),
        **dict.fromkeys(("NFKC", "NFKD"), 11),
        # Spaces around a Chinese character, NFD and small letters.
        "BertNormalizer": 8,
        "ByteLevel": 2,
        "Precompiled": _of_charsmap,
        "Prepend": _of_prepend,
        "Replace": _of_replace,
    },
    "pre_tokenizer": {
        **dict.fromkeys((*_CUTTING.split(), "WhitespaceSplit"), 1),
        "ByteLevel": _of_byte_level,
        "Metaspace": _of_metaspace,
    },
    "post_processor": {
        **dict.fromkeys(("BertProcessing", "ByteLevel", "RobertaProcessing"), 1),
        "TemplateProcessing": _of_template,
    },
    "decoder": {
        **dict.fromkeys(("ByteFallback", "Fuse", "Metaspace", "Strip"), 1),
        # A byte that is no text, spelled in two, becomes U+FFFD, of three bytes.
        "ByteLevel": 2,
        # What they replace by a space may be empty, and is then found before and behind each byte.
        **dict.fromkeys(("BPEDecoder", "CTC"), 3),
        # A space in front of a token.
        "WordPiece": 2,
        "Replace": _of_replace,
    },
}
