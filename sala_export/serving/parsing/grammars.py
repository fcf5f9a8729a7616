"""The grammars that are known, and which of them a chat template teaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from . import hermes, minicpm4, minicpm5
from .events import EventLog
from .reader import Reader, Steps
from .tools import Tools

_THINK = ("<think>", "</think>")

CallReader: TypeAlias = Callable[[Reader, EventLog, Tools], Steps[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """How a family of models writes its thinking and its calls."""

    thinking: tuple[tuple[str, str], ...]
    """Markers around thinking: beginning, end."""
    begin: str
    """Marker before calls."""
    end: str
    """Marker behind them."""
    read_calls: CallReader
    """Reads what follows `begin`, and reports it. What it leaves unsettled is none of a call."""
    signs: tuple[str, ...]
    """What stands in the templates of the family, and of none that comes before it in `GRAMMARS`."""


GRAMMARS = {
    "minicpm4": Grammar(
        # MiniCPM3 thinks before calls between the first pair, MiniCPM4.1 before answers between the second.
        thinking=(("<|thought_start|>", "<|thought_end|>"), _THINK),
        begin="<|tool_call_start|>",
        end="<|tool_call_end|>",
        read_calls=minicpm4.read_calls,
        signs=("<|tool_call_start|>", "<|thought_start|>"),
    ),
    "minicpm5": Grammar(
        thinking=(_THINK,),
        begin="<function",
        end="</function>",
        read_calls=minicpm5.read_call,
        signs=("<function name=",),
    ),
    "hermes": Grammar(
        thinking=(_THINK,),
        begin="<tool_call>",
        end="</tool_call>",
        read_calls=hermes.read_call,
        signs=("<tool_call>", "<think>", "</think>"),
    ),
}

FORMATS: tuple[str, ...] = (*GRAMMARS, "none")
"""Names of formats. In `none` everything is content."""


def choose_format(template_source: str | None) -> str:
    """Return the format whose markers a chat template contains, the first of `FORMATS` if there are several.

    A template that only knows `<think>` gives `hermes`. Without a template or markers it is `none`.
    """
    source = template_source or ""
    return next((name for name, grammar in GRAMMARS.items() if any(sign in source for sign in grammar.signs)), "none")


def reasoning_begins(format_name: str, prompt_end: str) -> bool:
    """True if a prompt ends where the model has begun to think, as templates that end with `<think>` make it."""
    return _ends_with_marker(format_name, prompt_end, 0)


def reasoning_has_ended(format_name: str, prompt_end: str) -> bool:
    """True if a prompt ends where the model has thought, as templates write it for a model that should not think."""
    return _ends_with_marker(format_name, prompt_end, 1)


def _ends_with_marker(format_name: str, text: str, which: int) -> bool:
    """Whether a text ends with a marker of thinking, of which 0 is the beginning and 1 the end."""
    if format_name not in GRAMMARS:
        return False
    return text.rstrip().endswith(tuple(markers[which] for markers in GRAMMARS[format_name].thinking))
