"""`sala-export generate`"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict, Unpack

import click
from rich.console import Console

from ..errors import RequestError, SessionError, UnsupportedError
from ..specs import RUNTIMES
from .generate_display import PrefillDisplay
from .options import Tokens, weights_option
from .output import load_progress, progress_display

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.session import Session
    from ..runtime.text import Tokenizer

STDIN = "-"
_BLOCK_BYTES = 64 * 1024


class _Sampling(TypedDict):
    """Options that go to `Session.generate` as they are."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@weights_option
@click.option("--prompt", help="The prompt.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from this UTF-8 file of any length. - is stdin.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the checkpoint's chat template.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Stop after this many tokens.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Sampling temperature. 0 always picks the most likely token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1.0,
    show_default=True,
    help="Sample only from the most likely tokens that together have this probability.",
)
@click.option(
    "--top-k", type=click.IntRange(min=0), default=0, help="Sample only from the k most likely tokens. 0 means all."
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Values above 1 make repetition less likely.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed for sampling.")
@click.option("--max-context", type=Tokens(), help="Room for prompt and answer together, e.g. 64K or 1M.")
@click.option(
    "--save-state",
    type=click.Path(path_type=Path),
    help="Save the conversation to this file, so that you can continue it later.",
)
@click.option(
    "--load-state",
    type=click.Path(path_type=Path),
    help="Continue a saved conversation. With --chat, the prompt is the next turn.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="auto",
    show_default=True,
    help="tensorrt runs on a GPU that the bundle was built for, onnxruntime on the CPU, torch on any GPU or the CPU. "
    "torch also takes checkpoints. auto chooses between tensorrt and onnxruntime.",
)
@click.pass_obj
def generate(
    console: Console,
    /,
    bundle: Path,
    weights: Path | None,
    prompt: str | None,
    prompt_file: str | None,
    chat: bool,
    max_context: int | None,
    save_state: Path | None,
    load_state: Path | None,
    runtime: str,
    **sampling: Unpack[_Sampling],
) -> None:
    """Answer a prompt with a bundle, and print the text while it is generated.

    If you interrupt the command, it saves no state.
    """
    if (prompt is None) == (prompt_file is None):
        raise RequestError("give the prompt either as --prompt TEXT or as --prompt-file FILE")
    if save_state is not None and not save_state.absolute().parent.is_dir():
        raise RequestError(f"--save-state {save_state}: there is no directory {save_state.parent}")
    with ExitStack() as stack:
        source = _source(prompt, prompt_file, stack)
        model, tokenizer = _load(console, bundle, runtime, weights)
        if load_state is None:
            session = model.session(max_context=max_context)
        else:
            session = model.restore(load_state, max_context=max_context)
        stop_tokens = {*model.eos_token_ids, *tokenizer.stop_token_ids}
        ids = _prompt_ids(source, tokenizer, session, chat=chat, stop_tokens=stop_tokens)
        with PrefillDisplay(console, source.tokens_expected) as display:
            session.prefill(ids, on_progress=display)
    if sampling["max_new_tokens"]:
        _answer(console, session, sampling)
    if save_state is not None:
        session.save(save_state)


@dataclass(slots=True)
class _Source:
    """The prompt as bytes, with a count of the bytes that were read."""

    file: BinaryIO | None
    """The file that the prompt is read from. None if the prompt is `text`."""
    text: bytes = b""
    bytes_total: int | None = None
    bytes_read: int = field(default=0, init=False)
    tokens_read: int = field(default=0, init=False)

    def blocks(self) -> Iterator[bytes]:
        """Yield blocks of the prompt as soon as they arrive.

        Raises: SessionError at the end if the prompt was empty.
        """
        while block := self.text if self.file is None and not self.bytes_read else self._read():
            self.bytes_read += len(block)
            yield block
        if not self.bytes_read:
            raise SessionError("the prompt is empty: give at least one character")

    def _read(self) -> bytes:
        # read1, where there is one, gives what a pipe holds instead of waiting for a full block.
        return b"" if self.file is None else getattr(self.file, "read1", self.file.read)(_BLOCK_BYTES)

    def tokens_expected(self) -> float | None:
        """Estimate the tokens of the whole prompt from what was read so far. None for a pipe."""
        return self.tokens_read * self.bytes_total / self.bytes_read if self.bytes_total and self.bytes_read else None


def _source(prompt: str | None, prompt_file: str | None, stack: ExitStack) -> _Source:
    if prompt_file is None:
        # A shell may pass bytes that are no UTF-8; they come back here, to be refused with their offset.
        text = (prompt or "").encode("utf-8", "surrogateescape")
        return _Source(None, text, bytes_total=len(text))
    if prompt_file == STDIN:
        return _Source(sys.stdin.buffer)
    path = Path(prompt_file)
    try:
        file = stack.enter_context(path.open("rb"))
    except OSError as error:
        raise RequestError(f"--prompt-file {path}: {error.strerror}") from None
    return _Source(file, bytes_total=path.stat().st_size if path.is_file() else None)


def _load(console: Console, bundle: Path, runtime: str, weights: Path | None) -> tuple[Model, Tokenizer]:
    """The model and its tokenizer."""
    from ..loading import TORCH, load
    from ..model_source import ModelSource
    from ..runtime.text import Tokenizer

    source = ModelSource.open(bundle, other_weights=weights) if runtime == TORCH else ModelSource.of_bundle(bundle)
    texts = source.text_files()
    if not texts:
        raise UnsupportedError(
            f"{bundle} has no tokenizer, so it cannot read text: use sala_export.load and token ids, or build it again "
            "from a checkpoint with tokenizer.json"
        )
    tokenizer = Tokenizer.from_files(texts)
    if runtime == TORCH:
        model = load(source, runtime=runtime, tokenizer=tokenizer)
    else:
        with progress_display(console) as on_progress:
            shown = load_progress(on_progress)
            model = load(source, runtime=runtime, tokenizer=tokenizer, on_progress=shown)
    return model, tokenizer


def _prompt_ids(
    source: _Source, tokenizer: Tokenizer, session: Session, *, chat: bool, stop_tokens: set[int]
) -> Iterator[list[int]]:
    """The tokens of the prompt, some at a time."""
    goes_on = session.position > 0
    before = after = ""
    blocks = source.blocks()
    if chat:
        if tokenizer.chat is None:
            raise UnsupportedError("--chat: the checkpoint came without a chat template; leave --chat out")
        around = tokenizer.chat.around_prompt(goes_on=goes_on)
        if around is None:
            # The template changes what it is given, so it has to see the whole prompt.
            before, blocks = tokenizer.chat.turn(_utf8(b"".join(blocks)), goes_on=goes_on), iter(())
        else:
            before, after = around
        last = int(session.tokens[-1]) if goes_on else None
        if last in stop_tokens:  # the context holds the end of the answer already
            before = before.removeprefix(tokenizer.token(last) or "")
    encoder = tokenizer.stream_encoder(add_special_tokens=not chat and not goes_on)
    pieces: tuple[Iterable[str | bytes], ...] = ((before,), blocks, (after,))
    for piece in itertools.chain.from_iterable(pieces):
        ids = encoder.push(piece)
        source.tokens_read += len(ids)
        yield ids
    yield encoder.finish()


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SessionError(f"the prompt is not UTF-8 at byte {error.start}, counted from 0: convert it first") from None


def _answer(console: Console, session: Session, sampling: _Sampling) -> None:
    start, position = time.monotonic(), session.position
    for piece in session.generate(**sampling):
        click.echo(piece, nl=False)
    click.echo()
    seconds, tokens = time.monotonic() - start, session.position - position
    reason = (session.finish_reason or "").replace("_", "-")
    console.print(f"generated: {tokens:,} tokens, {tokens / seconds:,.1f} tokens/s, ended by {reason}", soft_wrap=True)
