"""Random answers, written by writers that share nothing with the parsers, come back whatever the cuts."""

from __future__ import annotations

import json
import keyword
import random
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pytest
from serving.parsing.answers import MARKERS, cut_everywhere, merged, parsed, tool, valued

from sala_export.serving.parsing import output_parser

PIECES = [
    *"abcdefghijXYZ019 _-.,:;=#&|/\\'\"`()[]{}<>",
    *("\n", "\t", "\r\n", "\x00", "\x1f", "\x7f", "é", "漢字", "🙂", "\u2028", "\ufeff", "e\u0301", "''", '"""', "]]>"),
    *("</", "<|", "\\n", "\\u00e9", "\\N", "{{", "&lt;", "&amp", "<![CDATA[", "<param", "```", "None", "True"),
    *("<tool_call", "</tool_call>", "</function>", "</param>", "<|tool_call_end|>", "</think>", "<|thought_end|>"),
]
NAMES = ["f", "get_weather", "a.b", "mcp-tool", "größe", "F2"]
PARAMETERS = ["x", "city", "from", "class", "name", "größe", "_id", "arguments"]
SPACES = ["", "\n", "\n\n", " ", "\r\n\t "]


def random_text(rng: random.Random, longest: int = 12) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(longest)))


def random_value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(8 if depth else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, -1, 7, 10**20, rng.randrange(-(10**6), 10**6)])
    if kind == 2:
        return rng.choice([0.5, -1e-9, 1e300, rng.random()])
    if kind < 5:
        return random_text(rng)
    if kind == 5:
        return {random_text(rng): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]


def hermes_calls(rng: random.Random, calls: list[tuple[str, dict[str, Any]]]) -> str:
    written = []
    for name, arguments in calls:
        members = [("name", name), ("arguments", arguments), ("id", [{"name": "no"}])][: rng.choice([2, 3])]
        rng.shuffle(members)
        separators = rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
        indent = rng.choice([None, None, 1])
        text = json.dumps(dict(members), separators=separators, indent=indent, ensure_ascii=rng.random() < 0.5)
        written.append(f"<tool_call>{rng.choice(SPACES)}{text}{rng.choice(SPACES)}</tool_call>")
    return rng.choice(SPACES).join(written)


def python_text(rng: random.Random, text: str) -> str:
    """A Python literal of a text, in one of several styles."""
    escaped = text.replace("\\", "\\\\").replace("\x00", "\\0").replace("\r", "\\r")
    style = rng.randrange(6)
    if style == 0:
        return repr(text)
    if style == 1:
        return json.dumps(text)  # with surrogate pairs beyond the basic plane
    if style == 2:
        return "'''" + escaped.replace("'", "\\'") + "'''"
    if style == 3:
        return '"""' + escaped.replace('"', '\\"') + '"""'
    if style == 4:
        half = len(text) // 2
        return f"{text[:half]!r} # it's (\n {text[half:]!r}"
    if not set(text) & set("'\\\r\n"):
        return f"r'{text}'"
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


def python_value(rng: random.Random, value: Any) -> str:
    if isinstance(value, str):
        return python_text(rng, value)
    if isinstance(value, list):
        inner = [python_value(rng, element) for element in value]
        brackets = rng.choice(["[]", "()"])
        comma = "," * ((len(inner) == 1 and brackets == "()") or (bool(inner) and rng.random() < 0.3))
        return brackets[0] + ", ".join(inner) + comma + brackets[1]
    if isinstance(value, dict):
        return "{" + ",".join(f"{python_text(rng, k)}:\n{python_value(rng, v)}" for k, v in value.items()) + "}"
    return repr(value) if rng.random() < 0.5 else json.dumps(value)


def minicpm4_calls(rng: random.Random, calls: list[tuple[str, dict[str, Any]]]) -> str:
    lines = []
    for name, arguments in calls:
        named = [
            f"{key}{'_' * keyword.iskeyword(key)}{rng.choice(['=', ' = '])}{python_value(rng, value)}"
            for key, value in arguments.items()
        ]
        comma = rng.choice([",", ", ", ",\n    "])
        lines.append(f"{name}({rng.choice(['', ' '])}{comma.join(named)})")
    fence = rng.choice([("```python\n", "\n```"), ("```\n", "\n```"), ("", "")])
    block = fence[0] + rng.choice(["\n", ";\n", "\n# next ('\n"]).join(lines) + fence[1]
    return f"<|tool_call_start|>{rng.choice(SPACES)}{block}{rng.choice(SPACES)}<|tool_call_end|>"


def minicpm5_text(rng: random.Random, value: Any) -> str:
    """The text of a parameter, as the template writes it, or with entities."""
    text = value if isinstance(value, str) else rng.choice([str(value), json.dumps(value)])
    if rng.random() < 0.5:
        return escape(text)
    if set(text) & set("<&\n"):
        space = rng.choice(SPACES)
        return f"{space}<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>{space}"
    return text


def minicpm5_calls(rng: random.Random, calls: list[tuple[str, dict[str, Any]]]) -> str:
    space = rng.choice(SPACES)
    return rng.choice(SPACES).join(
        f"<function name={quoteattr(name)}>{space}"
        + "".join(f"<param  name = '{key}' >{minicpm5_text(rng, v)}</param>{space}" for key, v in arguments.items())
        + "</function>"
        for name, arguments in calls
    )


WRITERS: dict[str, Callable[[random.Random, list[tuple[str, dict[str, Any]]]], str]] = {
    "hermes": hermes_calls,
    "minicpm4": minicpm4_calls,
    "minicpm5": minicpm5_calls,
}
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def schema(value: Any) -> dict[str, Any]:
    if value is None:
        return {"enum": [None]}
    return {"anyOf": [{"type": TYPES[type(value)]}, {"type": "null"}]}


def random_answer(rng: random.Random, format_name: str) -> tuple[str, list[tuple[str, Any]], list[dict[str, Any]]]:
    """Text of an answer, what it should give, and the tools that it may call."""
    text, expected, tools = "", [], [tool("other")]
    begin, end, call, call_end = MARKERS[format_name]
    if rng.random() < 0.5:
        thought = plain(rng, (end,))
        text += f"{rng.choice(SPACES)}{begin}{rng.choice(SPACES)}{thought}{rng.choice(SPACES)}{end}{rng.choice(SPACES)}"
        expected.append(("reasoning", thought))
    for name in rng.sample(NAMES, rng.randrange(3)):
        said = plain(rng, (begin, "<think>", call, call_end))
        arguments = {key: random_value(rng) for key in rng.sample(PARAMETERS, rng.randrange(4))}
        tools.append(tool(name, **{key: schema(value) for key, value in arguments.items()}))
        written = WRITERS[format_name](rng, [(name, arguments)])
        text += said + rng.choice(SPACES) + written + rng.choice(SPACES)
        expected += [("content", said), ("call", name), ("arguments", arguments)]
    said = plain(rng, (begin, "<think>", call, call_end))
    return text + said, [part for part in [*expected, ("content", said)] if part[1] != ""], tools


def plain(rng: random.Random, markers: tuple[str, ...]) -> str:
    """Text without some markers, and without white space at its ends."""
    text = random_text(rng, 20)
    for marker in markers:
        text = text.replace(marker, "")
    text = text.strip(" \t\r\n")
    return "" if any(marker in text for marker in markers) else text


@pytest.mark.parametrize("format_name", WRITERS)
def test_random_answers_come_back_whatever_the_cuts(format_name: str) -> None:
    rng = random.Random(f"answers of {format_name}")
    calls = 0
    for _ in range(400):
        text, expected, tools = random_answer(rng, format_name)
        whole = parsed(format_name, [text], tools=tools)
        assert valued(whole) == expected, text
        calls += sum(kind == "call" for kind, _ in expected)
        for _ in range(3):
            parser = output_parser(format_name, tools=tools)
            found, rest = [], text
            while rest:
                length = rng.choice([1, 2, 3, 17])
                found += parser.push(rest[:length])
                rest = rest[length:]
            assert merged([*found, *parser.finish()]) == whole, text
    assert calls > 200


@pytest.mark.parametrize("format_name", WRITERS)
def test_answers_cut_at_every_place_are_the_same(format_name: str) -> None:
    rng = random.Random(1)
    for _ in range(6):
        text, _, tools = random_answer(rng, format_name)
        found = [parsed(format_name, pieces, tools=tools) for pieces in cut_everywhere(text[:600])]
        assert all(other == found[0] for other in found), text


@pytest.mark.parametrize("format_name", WRITERS)
def test_several_calls_in_one_block_come_back(format_name: str) -> None:
    calls = [("f", {"x": "1"}), ("g", {}), ("f", {"x": "</tool_call>)\n'"})]
    text = WRITERS[format_name](random.Random(2), calls)
    expected = [part for name, given in calls for part in (("call", name), ("arguments", given))]
    assert valued(parsed(format_name, [text])) == expected
