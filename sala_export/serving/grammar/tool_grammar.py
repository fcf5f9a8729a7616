"""Grammars of tool calls, in the forms in which the models of the family write them."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ...errors import RequestError
from ..parsing.grammars import GRAMMARS
from ..parsing.tools import NAME_LIMIT, is_name
from .lark import Lark, json_value, quoted
from .python_values import PythonValues, properties
from .shapes import Shape, Shapes
from .xml_values import XmlValues

_PYTHON_NAME = re.compile(r"[^\W\d][\w.-]*")
GAP = r"/[ \t\r\n]{0,8}/"
"""White space between the parts of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of an object."""

    @property
    def owner(self) -> str:
        return f"tool {json.dumps(self.name, ensure_ascii=False)}"


def tools_of(entries: Sequence[Mapping[str, Any]], choice: str | None) -> list[Tool]:
    """The functions of a request that may be called.

    Args: entries: `{"type": "function", "function": {"name": ..., "parameters": ...}}` each. choice: the only one that
    may be called. None: any.
    Raises: RequestError naming an entry of another form, or if there is nothing to call.
    """
    tools = [_tool(entry, index) for index, entry in enumerate(entries)]
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"tools: {twice!r} is there twice: give each tool a name of its own")
    if choice is not None:
        tools = [tool for tool in tools if tool.name == choice]
    if not tools:
        wanted = "a tool has to be called" if choice is None else f"tool_choice names {choice!r}"
        raise RequestError(f"{wanted}, and tools has {', '.join(names) or 'none'}: name one of them")
    return tools


def _tool(entry: Mapping[str, Any], index: int) -> Tool:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping) or entry.get("type", "function") != "function":
        raise RequestError(f'tools[{index}] is no function: write {{"type": "function", "function": {{...}}}}')
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not is_name(name):
        raise RequestError(f"tools[{index}].function.name is no name: use letters, digits, _ and -")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"tools[{index}].function.parameters is no object: write a JSON schema")
    return Tool(name=name, parameters=parameters or {"type": "object", "properties": {}, "additionalProperties": False})


def write_thinking(lark: Lark, form: str, *, has_begun: bool) -> str:
    """Add the rules for thinking that may come first, with the white space behind it, and return its expression.

    Args: form: "none" allows no thinking. has_begun: the prompt has opened the thinking, so that it has to end first.
    """
    if form == "none":
        return '""'
    thoughts = [(lark.text(start), lark.text_up_to(end)) for start, end in GRAMMARS[form].thinking]
    if has_begun:
        return f"({' | '.join(text for _, text in thoughts)}) {GAP}"
    return f"(({' | '.join(f'{start} {text}' for start, text in thoughts)}) {GAP})?"


def write_calls(lark: Lark, form: str, tools: Sequence[Tool], *, parallel: bool) -> str:
    """Add the rules for calls of tools and return the expression for one, or with `parallel` one or more.

    Raises: RequestError naming what a tool has that the format cannot write.
    """
    return _WRITERS[form](lark, tools, parallel)


def _hermes(lark: Lark, tools: Sequence[Tool], parallel: bool) -> str:
    bodies = []
    for tool in tools:
        head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
        arguments = lark.rule(json_value(tool.parameters), tool.owner)
        bodies.append(lark.rule(f'{quoted(head)} {arguments} "}}"', tool.owner))
    body = lark.rule(" | ".join(bodies))
    start, end = _ends(lark, "hermes")
    call = lark.rule(f"{start} {GAP} {body} {GAP} {end}")
    return f"{call} ({GAP} {call})*" if parallel else call


def _ends(lark: Lark, form: str) -> tuple[str, str]:
    return lark.text(GRAMMARS[form].begin), lark.text(GRAMMARS[form].end)


def _minicpm4(lark: Lark, tools: Sequence[Tool], parallel: bool) -> str:
    lines = []
    for tool in tools:
        shapes = Shapes(tool.parameters, tool.owner)
        values = PythonValues(lark, shapes, tool.owner)
        named = properties(_arguments(shapes))
        names, arguments = [name for name, _, _ in named], []
        for name, part, is_required in named:
            spelled = f"{name}_" if keyword.iskeyword(name) else name
            if not _PYTHON_NAME.fullmatch(spelled) or (spelled != name and spelled in names):
                raise _unnamed(tool, name, "Python")
            arguments.append((f"{quoted(spelled + '=')} {values.value(*part)}", is_required))
        lines.append(lark.rule(f'{quoted(tool.name + "(")} {values.listed(arguments)} ")"', tool.owner))
    line = lark.rule(" | ".join(lines))
    block = f'{line} ("\\n" {line})*' if parallel else line
    start, end = _ends(lark, "minicpm4")
    return f'{start} {GAP} "```python\\n" {block} "\\n```" {GAP} {end}'


def _minicpm5(lark: Lark, tools: Sequence[Tool], parallel: bool) -> str:
    calls = []
    for tool in tools:
        shapes = Shapes(tool.parameters, tool.owner)
        values = XmlValues(lark, shapes, tool.owner)
        parts = [lark.text(f'<function name="{escape(tool.name)}">'), GAP]
        for name, part, is_required in properties(_arguments(shapes)):
            if not name or "\n" in name or len(escape(name)) > NAME_LIMIT:
                raise _unnamed(tool, name, "XML")
            start, end = lark.text(f'<param name="{escape(name)}">'), lark.text("</param>")
            element = f"{start} {values.value(*part)} {end} {GAP}"
            parts.append(element if is_required else f"({element})?")
        calls.append(lark.rule(" ".join([*parts, lark.text("</function>")]), tool.owner))
    call = lark.rule(" | ".join(calls))
    return f"{call} ({GAP} {call})*" if parallel else call


def _unnamed(tool: Tool, name: str, language: str) -> RequestError:
    what = f"{tool.owner}, parameter {name!r} is no name in {language}, in which this model writes calls"
    return RequestError(f"{what}: rename it")


def _arguments(shapes: Shapes) -> Shape:
    """The object that the parameters of a tool are."""
    found = [shape for shape in shapes.of(shapes.root, "#") if shape.kind in ("object", "any")]
    if len(found) != 1:
        raise shapes.error("#", "the parameters are not one object", 'write {"type": "object", "properties": {...}}')
    return found[0]


_WRITERS: Mapping[str, Callable[[Lark, Sequence[Tool], bool], str]] = {
    "minicpm4": _minicpm4,
    "minicpm5": _minicpm5,
    "hermes": _hermes,
}
CALL_FORMATS = tuple(_WRITERS)
