"""Prepares a grammar in a process of its own, whose time and memory are limited, to see whether that ends.

The library bounds what a grammar costs while it is used, but not all that preparing one costs: some schemas of a line
take minutes or gigabytes. The file runs by its path, so that it starts without the rest of the package. It reads the
grammar from its standard input and writes what the library finds wrong to its standard output.
"""

from __future__ import annotations

import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30
STACK_BYTES = 2 << 20
"""Less than threads have: the library nests as deeply as references do, and a process without stack is ended."""


def parser_limits() -> LLParserLimits:
    """What the library may spend on a grammar, and on one token of an answer. `Grammars` says what the numbers mean."""
    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=25_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTable:
    """A vocabulary in the form that the library reads."""

    tokens: list[bytes]
    """Bytes of each token, in the order of ids. An empty one can never be drawn."""
    special_token_ids: list[int]
    """Tokens that no text spells."""
    eos_token_id: int
    bos_token_id: int | None = None

    def __call__(self, text: str) -> list[int]:
        """Raises: NotImplementedError. The library splits text only for grammars without `no_forcing`."""
        raise NotImplementedError("grammars are written with no_forcing")


def _main(vocab_size: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    with ThreadPoolExecutor(max_workers=1) as threads:
        sys.stdout.write(threads.submit(_message, sys.stdin.read(), vocab_size).result())


def _message(source: str, vocab_size: int) -> str:
    """What the library finds wrong with a grammar, where every byte is a token. Empty if nothing."""
    every_byte = [bytes([byte]) for byte in range(256)]
    tokens = every_byte + [b""] * (vocab_size - len(every_byte)) + [b"<end>"]
    end = len(tokens) - 1
    wrapper = TokenizerWrapper(TokenTable(tokens=tokens, special_token_ids=[end], eos_token_id=end))
    tokenizer = LLTokenizer(wrapper, slices=[])
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=parser_limits())
    matcher.compute_bitmask()
    return matcher.get_error()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
