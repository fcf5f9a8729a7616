"""No text makes a parser fail, lose anything or report what is no JSON, and much of it takes no more than its share."""

from __future__ import annotations

import random

import pytest
from serving.parsing.answers import MARKERS, calls_of, merged, parsed, tool

from sala_export.serving.parsing import output_parser

LENGTH = 1 << 17
CALL = {
    "minicpm4": "<|tool_call_start|>f(x=",
    "minicpm5": '<function name="f"><param name="x">',
    "hermes": '<tool_call>{"name": "f", "arguments": {"x": ',
}
TOOLS = [tool("f", x="array", y="object")]
SCRAPS = {
    "minicpm4": ["f(", "x=", "'", '"""', "#", "1", ",", ")", "{", "}", "[", ":", "```", "python\n", "True", "-", "\\"],
    "minicpm5": [
        ' name="f"',
        ">",
        '<param name="x">',
        "</param>",
        "<![CDATA[",
        "]]>",
        "&lt;",
        "[",
        "]",
        "{'a': 1}",
        '"',
    ],
    "hermes": ['{"name": "f"', ', "arguments": ', '"x": ', "{", "}", "[", "]", '"', ",", "1", "\\", "true", ":", "\n"],
}


@pytest.mark.parametrize("format_name", CALL)
def test_random_scraps_give_the_same_whatever_the_cuts(format_name: str) -> None:
    rng = random.Random(f"scraps of {format_name}")
    scraps = [*SCRAPS[format_name], *MARKERS[format_name], CALL[format_name], " ", "\n", "a", "<"]
    begun = 0
    for _ in range(1500):
        text = "".join(rng.choices(scraps, k=rng.randrange(1, 16)))
        whole = parsed(format_name, [text], tools=TOOLS)
        assert parsed(format_name, list(text), tools=TOOLS) == whole, text
        calls = calls_of(whole)
        begun += len(calls)
        if not calls and not any(begin in text for begin in (MARKERS[format_name][0], "<think>")):
            assert whole == [("content", text)]
        said = "".join(piece for kind, piece in whole if kind == "content")
        rest = iter(text)
        assert all(char in rest for char in said), text
    assert begun > 150


@pytest.mark.parametrize(
    ("format_name", "text", "arguments"),
    [
        ("hermes", "[" * LENGTH, {"x": None}),
        ("hermes", '"\\' * (LENGTH // 2), None),
        ("hermes", "1" * LENGTH, {}),
        ("hermes", "[" + "1," * (LENGTH // 2), {"x": [1] * (LENGTH // 2)}),
        ("hermes", '{"":' * (LENGTH // 4), {"x": None}),
        ("minicpm4", "[" * LENGTH, {}),
        ("minicpm4", "'" * LENGTH, {}),
        ("minicpm4", "-" * LENGTH + "1)", {}),
        ("minicpm4", "1-" * (LENGTH // 2) + "1)", {}),
        ("minicpm4", "0x" + "f" * LENGTH + ")", {}),
        ("minicpm4", "'" + "\\a" * (LENGTH // 2) + "')", {"x": "\a" * (LENGTH // 2)}),
        ("minicpm4", "#\n" * (LENGTH // 2), {}),
        ("minicpm5", "<" * LENGTH, {}),
        ("minicpm5", "[" * LENGTH + "</param>", {"x": "[" * LENGTH}),
        ("minicpm5", "<![CDATA[" + "]" * LENGTH, {}),
        ("minicpm5", "&lt;" * (LENGTH // 4) + "</param>", {"x": "<" * (LENGTH // 4)}),
    ],
)
def test_long_hostile_arguments_are_closed(format_name: str, text: str, arguments: dict[str, object] | None) -> None:
    (found,) = calls_of(parsed(format_name, [CALL[format_name] + text], tools=TOOLS))
    if arguments == {"x": None}:
        assert 0 < str(found).count("{") + str(found).count("[") <= 64
    elif arguments is not None:
        assert found == arguments
    else:
        assert isinstance(found["x"], str)


def test_call_that_is_nested_too_deep_holds_nothing_back() -> None:
    for format_name in ("hermes", "minicpm4"):
        parser = output_parser(format_name, tools=TOOLS)
        found = merged(parser.push(CALL[format_name] + "[" * 70 + "a"))
        assert [kind for kind, _ in found] == ["call", "arguments", "content"]
        assert found[-1][1].endswith("[a")


@pytest.mark.parametrize("format_name", CALL)
@pytest.mark.parametrize("unit", ["<", " ", "\n<", "<|", "a"])
def test_long_text_without_markers_passes_through(format_name: str, unit: str) -> None:
    text = unit * (LENGTH // 8)
    assert parsed(format_name, [text], tools=TOOLS) == [("content", text)]
    pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
    assert parsed(format_name, pieces, tools=TOOLS) == [("content", text)]


@pytest.mark.parametrize("format_name", CALL)
def test_markers_without_end_are_content(format_name: str) -> None:
    call = MARKERS[format_name][2]
    text = f"{call} " * 20_000
    assert parsed(format_name, [text], tools=TOOLS) == [("content", text)]
    text = call + "f" * LENGTH
    assert parsed(format_name, [text], tools=TOOLS) == [("content", text)]
