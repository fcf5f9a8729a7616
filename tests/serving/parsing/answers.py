"""What tests of parsers share: tools, and events without what is random or depends on the cuts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sala_export.serving.parsing import (
    Content,
    Event,
    Reasoning,
    ToolArguments,
    ToolCallBegun,
    output_parser,
)

MARKERS = {
    "minicpm4": ("<|thought_start|>", "<|thought_end|>", "<|tool_call_start|>", "<|tool_call_end|>"),
    "minicpm5": ("<think>", "</think>", "<function", "</function>"),
    "hermes": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
}


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    """A tool in OpenAI's form. Args: properties: schemas by name, or the name of a type."""
    schemas = {key: {"type": schema} if isinstance(schema, str) else schema for key, schema in properties.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": schemas}}}


def parsed(format_name: str, pieces: Iterable[str], **options: Any) -> list[tuple[str, str]]:
    """Kinds and texts of the events of an answer, those of one kind that follow each other joined."""
    return merged(events(format_name, pieces, **options))


def events(format_name: str, pieces: Iterable[str], **options: Any) -> list[Event]:
    parser = output_parser(format_name, **{"tools": [tool("f")], **options})
    return [*(event for piece in pieces for event in parser.push(piece)), *parser.finish()]


def merged(found: Iterable[Event]) -> list[tuple[str, str]]:
    joined: list[tuple[str, str]] = []
    calls = 0
    for event in found:
        match event:
            case ToolCallBegun():
                assert event.index == calls
                assert re.fullmatch(r"call_[A-Za-z0-9]{24}", event.id)
                calls += 1
                joined.append(("call", event.name))
                continue
            case ToolArguments():
                assert event.index == calls - 1
        kind = {Content: "content", Reasoning: "reasoning", ToolArguments: "arguments"}[type(event)]
        assert event.text
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + event.text)
        else:
            joined.append((kind, event.text))
    return joined


def valued(found: Iterable[tuple[str, str]]) -> list[tuple[str, Any]]:
    """The same, with arguments as what JSON says. Raises: ValueError if they are no JSON."""
    return [(kind, json.loads(text) if kind == "arguments" else text) for kind, text in found]


def calls_of(found: Iterable[tuple[str, str]]) -> list[Mapping[str, Any]]:
    """Arguments of every call, of which each has some."""
    kinds = [kind for kind, _ in found if kind in ("call", "arguments")]
    assert kinds == ["call", "arguments"] * (len(kinds) // 2)
    arguments = [value for kind, value in valued(found) if kind == "arguments"]
    assert all(isinstance(value, dict) for value in arguments)
    return arguments


def cut_everywhere(text: str) -> Iterator[list[str]]:
    """A text whole, in single characters, and in two at every place."""
    yield [text]
    yield list(text)
    for place in range(1, len(text)):
        yield [text[:place], text[place:]]
