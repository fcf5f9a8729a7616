"""An answer as blocks that follow each other: what the model thinks, what it says, and the tools that it calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from .parsing import Content, Event, Reasoning, ToolArguments, ToolCallBegun

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class AnswerBlock:
    """One block, as far as it has come."""

    index: int
    """Place in the answer, from 0."""
    kind: Kind
    call: ToolCallBegun | None = None
    """Which tool is called, if one is."""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the block says. Of a call, its arguments: a JSON object."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class BlockBegun:
    """A block begins."""

    block: AnswerBlock


@dataclass(frozen=True, slots=True)
class BlockGrown:
    """A block has got more text."""

    block: AnswerBlock
    text: str


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A block is complete, unless the answer was cut off in it."""

    block: AnswerBlock


BlockEvent = BlockBegun | BlockGrown | BlockEnded


class Blocks:
    """Puts what a parser reports into blocks. Of one answer."""

    def __init__(self) -> None:
        self.all: list[AnswerBlock] = []
        self._is_open = False

    def add(self, parsed: Iterable[Event]) -> Iterator[BlockEvent]:
        """Yield what changes. It must be taken to its end."""
        for event in parsed:
            match event:
                case Content(text):
                    yield from self._grow("text", text)
                case Reasoning(text):
                    yield from self._grow("reasoning", text)
                case ToolCallBegun():
                    yield from self._begin("call", event)
                case ToolArguments(_, text):
                    yield from self._grow("call", text)

    def finish(self) -> Iterator[BlockEvent]:
        """Yield the end of the last block, if there is one."""
        if self._is_open:
            self._is_open = False
            yield BlockEnded(self.all[-1])

    def _grow(self, kind: Kind, text: str) -> Iterator[BlockEvent]:
        if not self._is_open or self.all[-1].kind != kind:
            yield from self._begin(kind)
        block = self.all[-1]
        block.pieces.append(text)
        yield BlockGrown(block, text)

    def _begin(self, kind: Kind, call: ToolCallBegun | None = None) -> Iterator[BlockEvent]:
        yield from self.finish()
        self._is_open = True
        self.all.append(AnswerBlock(len(self.all), kind, call))
        yield BlockBegun(self.all[-1])
