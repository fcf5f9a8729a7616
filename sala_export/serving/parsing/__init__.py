"""What a model writes, taken apart while it writes: text, thinking and calls of tools."""

from .answer import OutputParser, output_parser
from .events import Content, Event, Reasoning, ToolArguments, ToolCall, ToolCallBegun
from .grammars import FORMATS, choose_format, reasoning_begins, reasoning_has_ended

__all__ = [
    "FORMATS",
    "Content",
    "Event",
    "OutputParser",
    "Reasoning",
    "ToolArguments",
    "ToolCall",
    "ToolCallBegun",
    "choose_format",
    "output_parser",
    "reasoning_begins",
    "reasoning_has_ended",
]
