"""Tokenizers with chat markers, answers drawn at random under a constraint, and a check of JSON schemas of our own."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from support.tokenizer_files import byte_level, sentencepiece

from sala_export.checkpoint.library_tokenizer import LibraryTokenizer
from sala_export.runtime.text import Tokenizer
from sala_export.serving.grammar import GrammarConstraint, Grammars
from sala_export.serving.grammar.vocabulary import Vocabulary

FOREIGN_TOKENS = 70
"""Ids of the model that the tokenizer does not know."""
_KINDS = {"sentencepiece": sentencepiece, "byte_level": byte_level}
_ENDS = (b'"', b"}", b"]", b")", b">", b"`")
_TYPES = {"string": str, "object": dict, "array": list, "null": type(None), "boolean": bool}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What a grammar needs to know of a model."""

    library: LibraryTokenizer
    vocabulary: Vocabulary
    grammars: Grammars
    stops: tuple[int, ...]
    known: int
    """Ids that the tokenizer knows."""

    def text(self, ids: Sequence[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=False)

    def spelled(self, text: str) -> list[int]:
        """Markers as they are, and one token for every byte of what is between them."""
        by_bytes = {value: token_id for token_id, value in enumerate(self.vocabulary.tokens)}
        pieces = self.vocabulary.pieces(text)
        parts = [
            [piece] if isinstance(piece, int) else [by_bytes[bytes([b])] for b in piece.encode()] for piece in pieces
        ]
        return [token_id for part in parts for token_id in part]


@cache
def model(kind: str, markers: tuple[str, ...] = ()) -> Model:
    """Args: kind: of the tokenizer, "sentencepiece" or "byte_level". markers: added tokens that are not special."""
    spec = json.loads(json.dumps(_KINDS[kind]()))
    known = 1 + max(token["id"] for token in spec["added_tokens"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"] += [{"id": known + i, "content": text, **flags} for i, text in enumerate(markers)]
    known += len(markers)
    library = LibraryTokenizer.from_json(json.dumps(spec).encode(), "tokenizer.json")
    stops = tuple(i for i in map(library.token_id, ("<|im_end|>", "<s>")) if i is not None)
    size = known + FOREIGN_TOKENS
    grammars = Grammars(Tokenizer(library, rule=None), size, stops)
    return Model(
        library=library, vocabulary=Vocabulary(library, size, stops), grammars=grammars, stops=stops, known=known
    )


def allowed_ids(constraint: GrammarConstraint) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.unpackbits(constraint.allowed().view(np.uint8), bitorder="little"))]


def drawn(constraint: GrammarConstraint, of: Model, generator: random.Random, most: int = 500) -> Iterator[list[int]]:
    """Draw an answer, first evenly and then ever more to its end. Gives it without its stop token, if it ends."""
    ids: list[int] = []
    while len(ids) < most:
        allowed = allowed_ids(constraint)
        stops = [i for i in allowed if i in of.stops]
        others = [i for i in allowed if i not in of.stops]
        if stops and (not others or generator.random() < 0.3):
            constraint.take(stops[0])
            yield ids
            return
        ends = [i for i in others if of.vocabulary.tokens[i] in _ENDS]
        ids.append(generator.choice(ends if ends and generator.random() < 0.1 + 2 * len(ids) / most else others))
        constraint.take(ids[-1])


def accepted(constraint: GrammarConstraint, ids: Sequence[int]) -> int:
    """Take tokens as long as they are allowed; returns how many were."""
    for count, token_id in enumerate(ids):
        if token_id not in allowed_ids(constraint):
            return count
        constraint.take(token_id)
    return len(ids)


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """True if a schema allows a value, for the keywords that the tests use."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        found = root
        for name in schema["$ref"].split("/")[1:]:
            found = found[name]
        return is_valid(value, found, root)
    if "anyOf" in schema and not any(is_valid(value, part, root) for part in schema["anyOf"]):
        return False
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return False
    types = schema.get("type", [])
    if types and not any(_is_of_type(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    checks = {dict: _is_valid_object, list: _is_valid_list, str: _is_valid_text, int: _is_in_range, float: _is_in_range}
    check = checks.get(type(value))
    return check is None or check(value, schema, root)


def _same(value: Any, other: Any) -> bool:
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_of_type(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        return type(value) is int or (name == "number" and type(value) is float)
    return isinstance(value, _TYPES[name])


def _is_valid_object(value: Mapping[str, Any], schema: Any, root: Any) -> bool:
    named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    parts = (is_valid(item, named.get(key, others), root) for key, item in value.items())
    return all(parts) and set(schema.get("required", [])) <= set(value)


def _is_valid_list(value: Sequence[Any], schema: Any, root: Any) -> bool:
    prefix = schema.get("prefixItems", [])
    parts = [*prefix, *[schema.get("items", True)] * len(value)]
    most = schema.get("maxItems", len(value))
    return schema.get("minItems", 0) <= len(value) <= most and all(map(is_valid, value, parts, [root] * len(value)))


def _is_valid_text(value: str, schema: Any, root: Any) -> bool:
    most = schema.get("maxLength", len(value))
    return schema.get("minLength", 0) <= len(value) <= most and bool(re.search(schema.get("pattern", ""), value))


def _is_in_range(value: float, schema: Any, root: Any) -> bool:
    is_above = value >= schema.get("minimum", value) and value > schema.get("exclusiveMinimum", -math.inf)
    return is_above and value <= schema.get("maximum", value)
