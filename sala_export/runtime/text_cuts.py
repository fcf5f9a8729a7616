"""Rules for cutting a text so that its parts, tokenised one by one, give the ids of the whole.

A tokenizer may join characters across any point, so a cut needs a proof. The rules here look at the two characters
around a point only, and are derived from tokenizer.json:

- An added token lies over a point only if the two characters follow each other in its spelling.
- Without splitting into words (SentencePiece-style BPE, with or without Metaspace), BPE joins the characters only if
  some merge has a left side that ends with the one and a right side that begins with the other.
- The GPT-2 expression of ByteLevel matches left to right and never looks back. A match does not go on past a letter,
  number or punctuation mark into another of these classes or into white space; its contractions ('s, 'll) are the
  exception.

`cut_rule` knows nothing else: a tokenizer with another normalizer, pre-tokenizer or model is not cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol
from unicodedata import ucd_3_2_0

from ..checkpoint.tokenizer_limits import Spec, steps


class CutRule(Protocol):
    """A rule that says where a cut is proven safe.

    The right part must be tokenised with the character before it in front, and the ids of that character taken off
    again: what a normalizer puts in front of a text is then put there and not into the middle.
    """

    def allows(self, before: str, after: str) -> bool:
        """True if every text with these two neighbouring characters may be cut between them."""


def cut_rule(spec: Spec) -> CutRule | None:
    """Find the rule for a tokenizer.json as the library writes it. None if nothing is known about it.

    Text is then never cut.
    """
    added = [token for token in spec.get("added_tokens") or () if token["content"]]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
        return None
    model = spec["model"]
    if model.get("type") != "BPE" or any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    normalizers = list(steps(spec.get("normalizer"), "normalizers"))
    pre_tokenizers = list(steps(spec.get("pre_tokenizer"), "pretokenizers"))
    match [part["type"] for part in pre_tokenizers]:
        case ["ByteLevel"] if pre_tokenizers[0].get("use_regex", True) and not normalizers:
            return _WordCuts(_AddedTokens.of(added, str, ""))
        case [] | ["Metaspace"]:
            return _merge_cuts(model, normalizers, pre_tokenizers, added)
    return None


@dataclass(frozen=True, slots=True)
class _AddedTokens:
    pairs: frozenset[tuple[str, str]]
    """Characters that follow each other in an added token."""
    last: frozenset[str]
    """Characters that end one: text that follows an added token is normalized as a text of its own."""

    @classmethod
    def of(cls, tokens: Iterable[Spec], spell: Callable[[str], str], prefix: str) -> _AddedTokens:
        """From tokenizer.json; `spell` and `prefix` are what the normalizer does to text."""
        spellings = [spell(token["content"]) for token in tokens]
        # A token with "normalized" is itself normalized, so the prefix may be part of it.
        pairs = {pair for spelling in spellings for pair in itertools.pairwise(prefix[-1:] + spelling)}
        return cls(frozenset(pairs), frozenset(spelling[-1] for spelling in spellings))

    def allow(self, before: str, after: str) -> bool:
        return before not in self.last and (before, after) not in self.pairs


@dataclass(frozen=True, slots=True)
class _WordCuts:
    """Between words as the expression of ByteLevel finds them."""

    added: _AddedTokens

    def allows(self, before: str, after: str) -> bool:
        left, right = _word_class(before), _word_class(after)
        if left in ("", "space") or right in ("", left):
            return False
        return not (before == "'" and right == "letter") and self.added.allow(before, after)


def _word_class(character: str) -> str:
    """`letter`, `number`, `mark`, `space`, or empty where versions of Unicode might not agree."""
    if character in " \t\n\r":
        return "space"
    # The oldest tables that Python has: what they assign, the tables of the tokenizer classify alike.
    return {"L": "letter", "N": "number", "P": "mark", "S": "mark"}.get(ucd_3_2_0.category(character)[0], "")


@dataclass(frozen=True, slots=True)
class _MergeCuts:
    """Where no merge can join."""

    added: _AddedTokens
    spell: Callable[[str], str]
    """A character after normalization."""
    joined: frozenset[tuple[str, str]]
    known: frozenset[str]
    """Characters with a token of their own; neighbouring others might become one unknown token."""

    def allows(self, before: str, after: str) -> bool:
        left, right = self.spell(before)[-1], self.spell(after)[0]
        if left not in self.known and right not in self.known:
            return False
        return (left, right) not in self.joined and self.added.allow(left, right)


def _merge_cuts(
    model: Spec, normalizers: list[Spec], pre_tokenizers: list[Spec], added: list[Spec]
) -> _MergeCuts | None:
    if model.get("ignore_merges"):
        return None
    prefix = ""
    replaced: dict[str, str] = {}
    for step in normalizers:
        pattern = step.get("pattern", {}).get("String", "") if step["type"] == "Replace" else ""
        if step["type"] == "Prepend":
            prefix = step["prepend"]
        # A second replacement might act on what the first one wrote.
        elif len(pattern) == 1 and len(step["content"]) == 1 and not replaced:
            replaced[pattern] = step["content"]
        else:
            return None
    for step in pre_tokenizers:
        if replaced or prefix:
            return None
        prefix, replaced = step["replacement"], {" ": step["replacement"]}
    table = str.maketrans(replaced)

    def spell(text: str) -> str:
        return text.translate(table)

    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if any(not side or _is_special_symbol(side, model) for merge in merges for side in merge):
        return None
    # The library joins by id, and merges are spelled with one of the spellings of an id.
    if len(set(model["vocab"].values())) < len(model["vocab"]):
        return None
    return _MergeCuts(
        added=_AddedTokens.of(added, spell, prefix),
        spell=spell,
        joined=frozenset((left[-1], right[0]) for left, right in merges),
        known=frozenset(word for word in model["vocab"] if len(word) == 1),
    )


def _is_special_symbol(symbol: str, model: Spec) -> bool:
    """Whether BPE writes the symbol for characters that do not spell it: a byte, or the unknown token."""
    return symbol == model.get("unk_token") or (len(symbol) == 6 and symbol.startswith("<0x") and symbol.endswith(">"))
