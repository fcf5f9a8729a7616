"""Refuses tokenizers that make much of little: forty steps that double a text fill any memory with the first prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BundleError

Spec = Mapping[str, Any]
"""A tokenizer.json, or a part of one."""

_MOST_GROWTH = 1 << 16
"""Of a text by all steps together. Those of checkpoints replace a character by a character or two."""


def steps(component: Spec | None, name: str) -> Iterator[Spec]:
    """Yield the steps of a component that may be missing or a Sequence. Args: name: of the list in a Sequence."""
    if component is None:
        return
    if component["type"] == "Sequence":
        for part in component[name]:
            yield from steps(part, name)
    else:
        yield component


def refuse_growth(spec: Spec, where: str) -> None:
    """Raise BundleError naming `where` if steps of a tokenizer.json as the library writes it make texts far longer."""
    for component, parts in (("normalizer", "normalizers"), ("decoder", "decoders")):
        growth = 1
        for step in steps(spec.get(component), parts):
            if step["type"] == "Replace":
                # An expression may match between any two characters.
                growth *= max(len(step["content"]) + ("Regex" in step["pattern"]), 1)
            if growth > _MOST_GROWTH:
                raise BundleError(f"{where}: the steps of its {component} may make a text {growth} times as long")
    for step in steps(spec.get("post_processor"), "processors"):
        added = sum(_template_ids(step)) if step["type"] == "TemplateProcessing" else 0
        if added > _MOST_GROWTH:
            raise BundleError(f"{where}: its post_processor puts {added} tokens around each text")


def _template_ids(step: Spec) -> Iterator[int]:
    special: dict[str, Any] = step["special_tokens"]
    for piece in step["single"]:
        # The library takes templates whose tokens it does not know.
        name = piece.get("SpecialToken", {}).get("id")
        yield len(special[name]["ids"]) if name in special else 0
