"""What answers give, and when."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving.parsing.answers import MARKERS, calls_of, cut_everywhere, events, merged, parsed, tool, valued

from sala_export.errors import RequestError
from sala_export.serving.parsing import FORMATS, Content, ToolArguments, ToolCallBegun, output_parser

CALLS = {
    "minicpm4": "<|tool_call_start|>\n```python\nf(x='a')\n```\n<|tool_call_end|>",
    "minicpm5": '<function name="f"><param name="x">a</param></function>',
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"x": "a"}}\n</tool_call>',
}
CALL: list[tuple[str, Any]] = [("call", "f"), ("arguments", {"x": "a"})]


def everywhere(format_name: str, text: str, **options: Any) -> list[tuple[str, Any]]:
    """What an answer gives, the same whatever its cuts."""
    found = [parsed(format_name, pieces, **options) for pieces in cut_everywhere(text)]
    assert all(other == found[0] for other in found)
    return valued(found[0])


@pytest.mark.parametrize("format_name", FORMATS)
def test_text_without_markers_passes_through(format_name: str) -> None:
    text = " \n a < b <tool_ <|tool_call <functional> </think> \t `x` 漢字🙂</tool_call></function> \n\n"
    for tools in ((), [tool("f")]):
        assert everywhere(format_name, text, tools=tools) == [("content", text)]
    assert parsed(format_name, []) == []


@pytest.mark.parametrize("format_name", CALLS)
def test_white_space_beside_markers_is_dropped(format_name: str) -> None:
    begin, end, *_ = MARKERS[format_name]
    call = CALLS[format_name]
    text = f"\n {begin}\n\n a \n b \t{end}\r\n\n c\n\n{call}\n{call}\n d \n{call}\n"
    expected = [("reasoning", "a \n b"), ("content", "c"), *CALL, *CALL, ("content", "d"), *CALL]
    assert everywhere(format_name, text) == expected


@pytest.mark.parametrize("format_name", CALLS)
def test_without_tools_calls_are_content(format_name: str) -> None:
    text = f"a \n{CALLS[format_name]}\n"
    assert everywhere(format_name, text, tools=()) == [("content", text)]


@pytest.mark.parametrize("format_name", CALLS)
def test_thinking_is_content_if_asked_for(format_name: str) -> None:
    begin, end, *_ = MARKERS[format_name]
    call = CALLS[format_name]
    text = f" {begin} a {call} {end} b "
    assert everywhere(format_name, f"{text}{call}", reasoning=False) == [("content", text.rstrip()), *CALL]
    text = f" a {call} {end} b "
    assert everywhere(format_name, text, reasoning=False, starts_in_reasoning=True) == [("content", text)]


@pytest.mark.parametrize("format_name", CALLS)
def test_prompt_may_have_opened_the_thinking(format_name: str) -> None:
    begin, end, *_ = MARKERS[format_name]
    call = CALLS[format_name]
    expected = [("reasoning", f"a {begin} {call}"), ("content", "b")]
    for repeated in ("", f"{begin}\n"):
        text = f"\n{repeated}a {begin} {call}\n{end}\n\nb"
        assert everywhere(format_name, text, starts_in_reasoning=True) == expected
    assert everywhere(format_name, f"a {call} ", starts_in_reasoning=True) == [("reasoning", f"a {call} ")]
    assert everywhere(format_name, f"{end}\n", starts_in_reasoning=True) == []


@pytest.mark.parametrize("format_name", CALLS)
def test_thinking_begins_only_where_no_text_stands_before_it(format_name: str) -> None:
    begin, end, *_ = MARKERS[format_name]
    thought = f"{begin}a{end}"
    text = f"{thought}\n{thought}{CALLS[format_name]}\n{thought}b {thought}"
    expected = [("reasoning", "aa"), *CALL, ("reasoning", "a"), ("content", f"b {thought}")]
    assert everywhere(format_name, text) == expected


def test_minicpm4_thinks_between_either_pair_of_markers() -> None:
    assert everywhere("minicpm4", "<think>\na</think>\nb") == [("reasoning", "a"), ("content", "b")]
    text = "a</think>b"
    assert everywhere("minicpm4", text, starts_in_reasoning=True) == [("reasoning", "a"), ("content", "b")]
    assert everywhere("minicpm4", "<think>a<|thought_end|>b") == [("reasoning", "a<|thought_end|>b")]


@pytest.mark.parametrize(
    ("format_name", "pieces", "expected"),
    [
        ("hermes", ["Hi", " there", " \n<tool"], ["Hi", " there", None]),
        ("hermes", ["a <", "b"], ["a", " <b"]),
        (
            "hermes",
            ['<tool_call>{"name": "f"', ', "arguments": {"x": "a', "b", '"', "}}"],
            ["f", '{"x": "a', "b", '"', "}"],
        ),
        ("minicpm4", ["<|tool_call_start|>f(", "x=1", ", y='", "')"], ["f", None, '{"x": 1', ', "y": ""}']),
        (
            "minicpm5",
            ['<function name="f"', ">", '<param name="x">', "a", "</param>", "</function>"],
            [None, "f", None, None, '{"x": "a"', "}"],
        ),
    ],
)
def test_events_come_as_soon_as_they_are_certain(
    format_name: str, pieces: list[str], expected: list[str | None]
) -> None:
    parser = output_parser(format_name, tools=[tool("f")])
    found = []
    for piece in pieces:
        new = parser.push(piece)
        assert len(new) <= 1 + isinstance(new[0] if new else None, ToolCallBegun)
        found.append(None if not new else new[0].name if isinstance(new[0], ToolCallBegun) else new[0].text)
    assert found[: len(expected)] == expected


def test_identifiers_of_calls_differ() -> None:
    found = events("hermes", [CALLS["hermes"] * 50])
    assert len({event.id for event in found if isinstance(event, ToolCallBegun)}) == 50


def test_function_that_is_no_tool_is_called_too() -> None:
    for format_name, call in CALLS.items():
        assert everywhere(format_name, call, tools=[tool("g")]) == CALL


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("f('a', 2)", {"x": "a", "from": 2}),
        ("f('a', from_=2)", {"x": "a", "from": 2}),
        ("f(from=2, class_=3, in_=4)", {"from": 2, "class": 3, "in_": 4}),
        ("f( # a comment, with ')\n x = 'a' # another\n , )", {"x": "a"}),
        ("f(x=\"\\ud83d\\ude00\", y={'a': (1, [None])})", {"x": "😀", "y": {"a": [1, [None]]}}),
    ],
)
def test_arguments_of_python_calls_follow_the_schema(text: str, arguments: dict[str, Any]) -> None:
    tools = [tool("f", x="string", **{"from": "integer", "in_": "integer"})]
    found = everywhere("minicpm4", f"<|tool_call_start|>{text}<|tool_call_end|>", tools=tools)
    assert found == [("call", "f"), ("arguments", arguments)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f", "arguments": "{\\"x\\": [1]}"}', {"x": [1]}),
        ('{"arguments": {"name": "g"}, "id": 3, "name": "f"}', {"name": "g"}),
        ('{"name": "f", "arguments": {"x": "</tool_call>"}}', {"x": "</tool_call>"}),
    ],
)
def test_json_calls_come_in_several_shapes(text: str, arguments: dict[str, Any]) -> None:
    found = everywhere("hermes", f"<tool_call>\n{text}\n</tool_call>\n")
    assert found == [("call", "f"), ("arguments", arguments)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("&lt;&#233;&#x1F642;&amp;lt;&copy;&#xD800;&#1114112;& a<b", "<é🙂&lt;&copy;&#xD800;&#1114112;& a<b"),
        ("\n<![CDATA[ <a>&lt;]]]]><![CDATA[> ]]>\n", " <a>&lt;]]> "),
        (" a\n", " a\n"),
        ("", ""),
    ],
)
def test_values_in_xml_are_decoded(text: str, arguments: str) -> None:
    found = everywhere("minicpm5", f"<function name='f'>\n<param name='&lt;x'>{text}</param></function>")
    assert found == [("call", "f"), ("arguments", {"<x": arguments})]


@pytest.mark.parametrize(
    ("format_name", "text"),
    [
        ("hermes", '<tool_call>\n{"nam'),
        ("hermes", ' a <tool_call>\n{"name": "no name", "arguments": {}} </tool_call> '),
        ("hermes", '<tool_call> f(x=1) </tool_call> b <tool_call> {"name": ["f"]} </tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "' + "f" * 257 + '"}</tool_call>'),
        ("minicpm4", "<|tool_call_start|>\n```python\n```\n<|tool_call_end|> "),
        ("minicpm4", "a\n<|tool_call_start|>\n```python\nx = f(1)\n```\n<|tool_call_end|>"),
        ("minicpm5", '<function name="f"'),
        ("minicpm5", "<function>\n<function name=f> <function name='a b'> <functions> <function id='f'></function>"),
    ],
)
def test_what_is_no_call_is_content(format_name: str, text: str) -> None:
    assert everywhere(format_name, text) == [("content", text)]


@pytest.mark.parametrize(
    ("format_name", "text", "arguments", "content"),
    [
        ("hermes", '{"name": "f", "arguments": {"x": 1, "y": [2, "b\\', {"x": 1, "y": [2, "b"]}, "\\"),
        ("hermes", '{"name": "f", "arguments": {"x": 1, "y": tr', {"x": 1}, ', "y": tr'),
        ("hermes", '{"name": "f", "arguments": {"x": 1, y}}\n</tool_call>\nb', {"x": 1}, ", y}}b"),
        ("hermes", '{"name": "f", "arguments": {"x": 1}\n</tool_call>\n', {"x": 1}, ""),
        ("hermes", '{"name": "f", "arguments": {"x": 1}}}\n</tool_call>\n', {"x": 1}, "}"),
        ("hermes", '{"name": "f", "arguments": [1]}</tool_call>', {}, ', "arguments": [1]}'),
        ("hermes", '{"name": "f"</tool_call>b', {}, "b"),
        ("minicpm4", "f(x=1, y='b", {"x": 1}, " y='b"),
        ("minicpm4", "f(x=1, y=g())\n```\n<|tool_call_end|>b", {"x": 1}, " y=g())\n```b"),
        ("minicpm4", "f(x=1\n```\n<|tool_call_end|>b", {}, "x=1\n```\nb"),
        ("minicpm4", "f(1)\n<|tool_call_end|>", {}, "1)"),
        ("minicpm4", "f(1)<|tool_call_end|><think>b", {}, "1)<think>b"),
        ("minicpm4", "f(x=1,\u00a0", {"x": 1}, "\u00a0"),
        ("minicpm4", "f(x=1) # why\nnot\n```\n<|tool_call_end|>", {"x": 1}, "not\n```"),
        ("minicpm5", ' name="f"><param name="x">1</param><param name="y">b', {"x": "1"}, '<param name="y">b'),
        ("minicpm5", ' name="f"><param name="x">1</function>b', {"x": "1"}, "b"),
        ("minicpm5", ' name="f">?<param name="x">1</param></function>b', {}, '?<param name="x">1</param>b'),
        ("minicpm5", ' name="f"><param name="x">1</param>\n', {"x": "1"}, ""),
    ],
)
def test_call_that_breaks_off_is_closed(format_name: str, text: str, arguments: dict[str, Any], content: str) -> None:
    expected = [("call", "f"), ("arguments", arguments), ("content", content)]
    found = everywhere(format_name, MARKERS[format_name][2] + text)
    assert found == [part for part in expected if part[1] != ""]


@pytest.mark.parametrize("format_name", CALLS)
def test_answer_may_break_off_anywhere(format_name: str) -> None:
    value = {"b": [1, 'x"\\\n</param>'], "c": {"d": True}}
    text = {
        "minicpm4": f"a <|tool_call_start|>\n```python\nf(x={value!r})\ng()\n```\n<|tool_call_end|>",
        "minicpm5": f'a <function name="f"><param name="x"><![CDATA[{value}]]></param></function><function name="g">',
        "hermes": f"a <tool_call>{json.dumps({'name': 'f', 'arguments': {'x': value}})}</tool_call>",
    }[format_name]
    for length in range(len(text)):
        found = parsed(format_name, [text[:length]], tools=[tool("f", x="object")])
        kept = [arguments["x"] for arguments in calls_of(found) if "x" in arguments]
        assert all(set(x) <= set(value) for x in kept)
        if not calls_of(found):
            assert found == [("content", text[:length])][:length]
    assert kept == [value]


def test_unknown_format_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown format 'xml': take one of minicpm4, minicpm5, hermes, none"):
        output_parser("xml")


def test_pieces_of_one_push_are_one_event() -> None:
    assert events("hermes", ["a b < c <d e"]) == [Content("a b < c <d e")]
    found = events("hermes", ['<tool_call>{"name": "f", "arguments": {"x": [1, "a\\n"], "y": 2}}'])
    assert found[1:] == [ToolArguments(0, '{"x": [1, "a\\n"], "y": 2}')]
    assert merged(found)[0] == ("call", "f")
