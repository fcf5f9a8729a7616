"""`sala-export tokenize` and `sala-export detokenize`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RequestError, SessionError, UnsupportedError, printable
from ..files import exists
from .generate_prompt import STDIN, PromptSource
from .text_model import show_text, tokenizer_of

if TYPE_CHECKING:
    from ..runtime.text import Tokenizer

_MOST_DIGITS = 10
_MOST_ID = 2**31 - 1


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", help="The text.")
@click.option("--prompt-file", metavar="FILE", help="Read the text from this UTF-8 file.  [default: standard input]")
@click.option(
    "--add-special-tokens/--no-add-special-tokens",
    default=True,
    show_default=True,
    help="Begin (and end) the text as the tokenizer is set up to. Say no for text that continues another.",
)
@click.option("--chat", is_flag=True, help="Wrap the text in the checkpoint's chat template.")
@click.option("--literal", is_flag=True, help="Special tokens in the text, such as <|im_end|>, are ordinary text.")
def tokenize(
    model: Path, prompt: str | None, prompt_file: str | None, add_special_tokens: bool, chat: bool, literal: bool
) -> None:
    """Turn text into token ids, which sala-run takes. MODEL is a bundle or a directory with tokenizer.json.

    The ids of a long text come while it is read. No weights are loaded. For example:

    \b
      sala-export tokenize sala.sala --prompt "Hello" | sala-run sala.sala --tokens -
    """
    if prompt is not None and prompt_file is not None:
        raise RequestError("give the text either as --prompt TEXT or as --prompt-file FILE")
    with ExitStack() as stack:
        source = PromptSource.open(prompt, STDIN if prompt is None and prompt_file is None else prompt_file, stack)
        tokenizer = _open(model)
        encoder = tokenizer.stream_encoder(add_special_tokens=add_special_tokens and not chat)
        separator = ""
        for piece, is_literal in _pieces(source, tokenizer, chat=chat, literal=literal):
            ids = encoder.push(piece, literal=is_literal)
            separator = _show_ids(ids, separator)
        _show_ids(encoder.finish(), separator)
        click.echo()


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--keep-special-tokens", is_flag=True, help="Write special tokens, too, such as <|im_end|>.")
def detokenize(model: Path, keep_special_tokens: bool) -> None:
    """Turn token ids from standard input into text. MODEL is a bundle or a directory with tokenizer.json.

    Ids are separated by white space. Text is written as soon as no later id can change it. For example:

    \b
      sala-run sala.sala --tokens prompt.txt | sala-export detokenize sala.sala
    """
    with ExitStack() as stack:
        source = PromptSource.open(None, STDIN, stack)
        source.name = "list of token ids"
        decoder = _open(model).stream_decoder(skip_special_tokens=not keep_special_tokens)
        for token_id in _token_ids(source):
            show_text(decoder.push(token_id))
        show_text(decoder.finish() + ("\n" if sys.stdout.isatty() else ""))


def _open(model: Path) -> Tokenizer:
    # Here, not above: `--help` needs none of them.
    from ..bundle.manifest import MANIFEST_FILE
    from ..runtime.text import Tokenizer

    if not exists(model / MANIFEST_FILE):
        return Tokenizer.from_directory(model)
    from ..bundle.reader import Bundle

    return tokenizer_of(model, Bundle.open(model).text_files())


def _pieces(source: PromptSource, tokenizer: Tokenizer, *, chat: bool, literal: bool) -> Iterator[tuple[str, bool]]:
    """Yield the text, and whether each part is literal. A chat template has to see it whole."""
    blocks = source.text_blocks()
    if not chat:
        for block in blocks:
            yield block, literal
        return
    if tokenizer.chat is None:
        raise UnsupportedError("--chat: the checkpoint came without a chat template; leave --chat out")
    from ..runtime.literal import LiteralMarks

    marks, text = LiteralMarks(tokenizer), "".join(blocks)
    yield from marks.pieces(tokenizer.chat.turn(marks.around_special(text) if literal else text, goes_on=False))


def _show_ids(ids: list[int], separator: str) -> str:
    """Write ids, and return what comes before the next."""
    if not ids:
        return separator
    click.echo(separator + " ".join(map(str, ids)), nl=False)
    return " "


def _token_ids(source: PromptSource) -> Iterator[int]:
    waiting, count = "", 0
    for block in source.text_blocks():
        *words, waiting = _words(waiting + block)
        for word in words:
            yield _token_id(word, count)
            count += 1
    if waiting:
        yield _token_id(waiting, count)


def _words(text: str) -> list[str]:
    """The words of a text, and at last the one that may go on, which may be empty."""
    words = text.split()
    return words if words and not text[-1].isspace() else [*words, ""]


def _token_id(word: str, index: int) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) <= _MOST_DIGITS and int(word) <= _MOST_ID):
        raise SessionError(f"token {index}, counted from 0, is {printable(repr(word[:40]))}, expected a decimal id")
    return int(word)
