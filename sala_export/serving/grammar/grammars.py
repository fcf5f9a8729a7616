"""Answers of a given form: JSON, JSON that a schema allows, and calls of tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ...errors import RequestError
from ...runtime.text import Tokenizer
from ..parsing.grammars import FORMATS
from . import limits
from .constraint import GrammarConstraint
from .lark import Lark, json_value
from .messages import line_number, reason
from .tool_grammar import CALL_FORMATS, tools_of, write_calls, write_thinking
from .trial import TokenTable, parser_limits
from .vocabulary import Vocabulary

_UNSUPPORTED = re.compile(r'Unimplemented keys: \["([^"]*)"')
_SCHEMA = "the JSON schema"


class Grammars:
    """Makes the constraints of answers for one model. Several threads may use it.

    Making this object takes the vocabulary apart: about half a second for 73,448 tokens. Making a constraint takes one
    or two milliseconds, and a tenth of a second more where its schema is not among the last 1024: then it is tried in a
    process of its own. Do both outside of an event loop.

    What a stranger sends is bounded. A schema has at most 64 KiB as JSON and all tools together 256 KiB, nested at most
    100 levels deep. To prepare a grammar may take 2 seconds of processor time, 1 GiB, and a quarter of a usual stack in
    that process. In use, the library stops where its own limits are passed (`trial.parser_limits`). They bound what one
    token of an answer costs: work on regular expressions (`step_lexer_fuel`), work on rules (`step_max_items`), and
    rules in progress at one place (2000). They bound the memory of an answer too: 50,000 states of regular expressions,
    of up to 2 KB each. The longest that a token took under hostile schemas was 60 ms, on a busy machine.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_token_ids: Sequence[int]) -> None:
        """Args: vocab_size: tokens that the model draws from, of which the tokenizer may know fewer. stop_token_ids:
        each of them may end an answer that is complete.

        Raises: RequestError if there is no stop token, or one lies outside the vocabulary. UnsupportedError if the
        tokenizer is of a kind whose tokens have no bytes of their own.
        """
        self._vocabulary = Vocabulary(tokenizer._tokenizer, vocab_size, stop_token_ids)
        stops = list(self._vocabulary.stop_token_ids)
        tokens = TokenTable(
            tokens=self._vocabulary.tokens,
            special_token_ids=self._vocabulary.special_token_ids,
            eos_token_id=stops[0],
        )
        self._tokenizer = LLTokenizer(TokenizerWrapper(tokens), eos_token=stops, slices=LLTokenizer.json_slices())
        self._vocab_size = vocab_size
        self._trials = limits.Trials(vocab_size)

    def json_object(self, *, after_reasoning: str = "none", starts_in_reasoning: bool = False) -> GrammarConstraint:
        """Allow any JSON object. The arguments are those of `json_schema`."""
        return self.json_schema(
            {"type": "object"}, after_reasoning=after_reasoning, starts_in_reasoning=starts_in_reasoning
        )

    def json_schema(
        self, schema: Mapping[str, Any], *, after_reasoning: str = "none", starts_in_reasoning: bool = False
    ) -> GrammarConstraint:
        """Allow the JSON texts that a schema allows.

        An object has the properties that the schema names in their order, then others where it allows them. Names of
        those others can come twice.

        Args: after_reasoning: the model may think first, between the markers of this format: "minicpm4", "minicpm5" or
        "hermes". "none": it may not. starts_in_reasoning: the prompt has opened the thinking.
        Raises: RequestError naming what the schema has that is not supported, or a bound of the class that it passes.
        """
        limits.require_bounded(schema, what=_SCHEMA, most_bytes=limits.MOST_SCHEMA_BYTES)
        lark = Lark(self._vocabulary)
        thinking = write_thinking(lark, _format(after_reasoning, FORMATS), has_begun=starts_in_reasoning)
        value = lark.rule(json_value(schema), _SCHEMA)
        lark.rule(f"{thinking} {value}", name="start")
        return self._constraint(lark, {_SCHEMA: schema})

    def tool_calls(
        self,
        format: str,  # noqa: A002 - the word of the options that name it
        tools: Sequence[Mapping[str, Any]],
        *,
        choice: str | None,
        parallel: bool,
        reasoning: bool = True,
        starts_in_reasoning: bool = False,
    ) -> GrammarConstraint:
        """Allow calls of tools and nothing else, but for thinking before them.

        Args: format: "minicpm4" (calls in Python), "minicpm5" (XML) or "hermes" (JSON). tools: as OpenAI's clients send
        them. choice: the name of the only function that may be called. None: any of them. parallel: more than one call
        may come. reasoning: the model may think first. starts_in_reasoning: the prompt has opened the thinking.

        "hermes" writes arguments as `json_schema` does. The two others write the parameters that a schema names, in its
        order, and know less of schemas: `shapes.Shapes` refuses the rest by name.
        Raises: RequestError naming the tool, and what it has that is not supported, or a bound of the class.
        """
        limits.require_bounded(list(tools), what="tools", most_bytes=limits.MOST_TOOLS_BYTES)
        if format == "none":
            raise RequestError("the chat template of this model has no form for tool calls: ask without tool_choice")
        chosen = tools_of(tools, choice)
        lark = Lark(self._vocabulary)
        _format(format, CALL_FORMATS)
        thinking = write_thinking(lark, format if reasoning else "none", has_begun=starts_in_reasoning)
        lark.rule(f"{thinking} {write_calls(lark, format, chosen, parallel=parallel)}", name="start")
        return self._constraint(lark, {tool.owner: tool.parameters for tool in chosen})

    def _constraint(self, lark: Lark, schemas: Mapping[str, Any]) -> GrammarConstraint:
        source = lark.source()
        message = self._trials.message(source)
        if message is None:
            raise RequestError(
                "the grammar of the answer takes more than the time or memory that is allowed to prepare it: send "
                'simpler schemas, above all in "pattern" and "multipleOf", and shorter chains of "$ref"'
            )
        if message:
            raise _refusal(message, lark, schemas)
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=parser_limits())
        if matcher.is_error():
            raise _refusal(matcher.get_error(), lark, schemas)
        return GrammarConstraint(matcher, self._vocab_size)


def _format(name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise RequestError(f"{name!r} is no format of tool calls: use one of {', '.join(known)}")
    return name


def _refusal(message: str, lark: Lark, schemas: Mapping[str, Any]) -> RequestError:
    owner = lark.owner(line_number(message)) or " and ".join(schemas)
    unsupported = _UNSUPPORTED.search(message)
    if not unsupported:
        return RequestError(f"{owner} cannot be followed ({reason(message)}): change or leave out that part")
    name = unsupported[1]
    places = [pointer for pointer, key in _keys(schemas.get(owner), "#") if key == name]
    where = f" at {places[0]}" if places else ""
    return RequestError(f'{owner}{where}: "{name}" is not supported: leave it out')


def _keys(value: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """All keys in a value, with the pointers of their objects."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield pointer, key
            yield from _keys(child, f"{pointer}/{key}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _keys(child, f"{pointer}/{index}")
