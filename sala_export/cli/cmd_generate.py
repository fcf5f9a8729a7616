"""`sala-export generate`"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click
from rich.console import Console

from ..errors import RequestError, SalaError, SessionError, StateError, UnsupportedError, printable_text
from ..files import OpenedFile
from ..specs import RUNTIMES
from .generate_display import PrefillDisplay
from .generate_prompt import PromptSource, prompt_ids, require_chat
from .generate_state import open_target, require_room, saved_at_the_end
from .options import Tokens, weights_option
from .output import load_progress, progress_display
from .sampling_options import Sampling, sampling_options
from .signals import raise_received, raising

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.session import PrefillProgress, Session
    from ..runtime.text import Tokenizer


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@weights_option
@click.option("--prompt", help="The prompt.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from this UTF-8 file of any length. - is stdin.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the checkpoint's chat template.")
@sampling_options
@click.option("--max-context", type=Tokens(), help="Room for prompt and answer together, e.g. 64K or 1M.")
@click.option(
    "--save-state",
    type=click.Path(path_type=Path),
    help="Save the conversation to this file at the end, however it ends, so that you can continue it later.",
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
    **sampling: Unpack[Sampling],
) -> None:
    """Answer a prompt with a bundle, and print the text while it is generated.

    With --save-state, a command that ends early, for example by Ctrl-C, saves what has run by then.
    """
    if (prompt is None) == (prompt_file is None):
        raise RequestError("give the prompt either as --prompt TEXT or as --prompt-file FILE")
    with ExitStack() as stack:
        source = PromptSource.open(prompt, prompt_file, stack)
        target = None if save_state is None else open_target(save_state, stack)
        if load_state is not None:
            OpenedFile.open(load_state, error=StateError)
        model, tokenizer = _load(console, bundle, runtime, weights, chat=chat, goes_on=load_state is not None)
        model.check_generate(**sampling)
        if load_state is None:
            session = model.session(max_context=max_context)
        else:
            session = model.restore(load_state, max_context=max_context)
        stop_tokens = {*model.eos_token_ids, *tokenizer.stop_token_ids}
        # A prompt that is known whole is refused whole.
        fills = target is not None and source.file is not None
        ids: Iterable[list[int]] = prompt_ids(
            source, tokenizer, session, chat=chat, fills=fills, stop_tokens=stop_tokens
        )
        if source.file is None:
            ids = [*ids]
        if target is not None:
            require_room(target, model, session, source.tokens_read + sampling["max_new_tokens"])
        with saved_at_the_end(console, session, target):
            _prefill(console, session, ids, source, goes_on_after_error=target is not None)
            if sampling["max_new_tokens"]:
                _answer(console, session, tokenizer, sampling)


def _load(
    console: Console, bundle: Path, runtime: str, weights: Path | None, *, chat: bool, goes_on: bool
) -> tuple[Model, Tokenizer]:
    """The model and its tokenizer, whose chat template is tried before the weights are loaded."""
    from ..loading import TORCH, load
    from ..model_source import ModelSource
    from ..runtime.text import Tokenizer

    source = (
        ModelSource.open(bundle, other_weights=weights)
        if runtime == TORCH
        else ModelSource.of_bundle(bundle, other_weights=weights)
    )
    texts = source.text_files()
    if not texts:
        raise UnsupportedError(
            f"{bundle} has no tokenizer, so it cannot read text: use sala_export.load and token ids, or build it again "
            "from a checkpoint with tokenizer.json"
        )
    tokenizer = Tokenizer.from_files(texts)
    if chat:
        require_chat(tokenizer).around_prompt(goes_on=goes_on)
    if runtime == TORCH:
        model = load(source, runtime=runtime, tokenizer=tokenizer)
    else:
        with progress_display(console) as on_progress:
            shown = load_progress(on_progress)
            model = load(source, runtime=runtime, tokenizer=tokenizer, on_progress=shown)
    return model, tokenizer


def _prefill(
    console: Console,
    session: Session,
    ids: Iterable[list[int]],
    source: PromptSource,
    *,
    goes_on_after_error: bool,
) -> None:
    """Run the prompt. What came before an error in it runs too if its state will be saved."""
    errors: list[SalaError] = []

    def accepted() -> Iterator[list[int]]:
        try:
            yield from ids
        except SalaError as error:
            if not goes_on_after_error:
                raise
            errors.append(error)

    with PrefillDisplay(console, source.tokens_expected) as display:

        def on_progress(progress: PrefillProgress) -> None:
            display(progress)
            raise_received()

        try:
            session.prefill(accepted(), on_progress=on_progress)
        except SessionError:  # nothing came before the error
            if not errors:
                raise
    if errors:
        raise errors[0]


def _answer(console: Console, session: Session, tokenizer: Tokenizer, sampling: Sampling) -> None:
    from ..runtime.answer import answer_decoder

    start, position = time.monotonic(), session.position
    decoder = answer_decoder(tokenizer, sampling["stop_strings"])
    for token_id in session.generate_tokens(**sampling):
        _show(decoder.push(token_id))
    _show(decoder.finish())
    _show("\n")
    seconds, tokens = time.monotonic() - start, session.position - position
    reason = (session.finish_reason or "").replace("_", "-")
    console.print(f"generated: {tokens:,} tokens, {tokens / seconds:,.1f} tokens/s, ended by {reason}", soft_wrap=True)


def _show(text: str) -> None:
    """Write a piece of the answer, which may be empty. A signal counts here, also while a full pipe makes it wait."""
    with raising():
        click.echo(printable_text(text) if sys.stdout.isatty() else text, nl=False)
