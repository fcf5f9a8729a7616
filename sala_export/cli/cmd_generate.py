"""`sala-export generate`"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click
from rich.console import Console

from ..errors import RequestError, SalaError, SessionError, StateError
from ..files import OpenedFile
from .chat_options import Chat, ChatOptions, chat_options, require_sense
from .generate_display import PrefillDisplay
from .generate_prompt import PromptSource, prompt_ids
from .generate_state import open_target, require_room, saved_at_the_end
from .generate_store import NewContext, StoredPrompt, open_store
from .options import BundlePath, Bytes, Tokens, weights_option
from .output import print_json
from .sampling_options import Sampling, sampling_options
from .signals import raise_received
from .text_model import describe_answer, load_weights, open_text_model, runtime_options, show_answer, show_runtime

if TYPE_CHECKING:
    from ..runtime.model import Model
    from ..runtime.session import PrefillProgress, Session, StateTarget
    from ..runtime.state_store import StateStore
    from ..runtime.text import Tokenizer


@click.command()
@click.argument("bundle", type=BundlePath())
@weights_option
@click.option("--prompt", help="The prompt. With --prompt-file it comes behind the file, on a line of its own.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from this UTF-8 file of any length. - is stdin.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the checkpoint's chat template.")
@click.option("--literal", is_flag=True, help="Special tokens in the prompt, such as <|im_end|>, are ordinary text.")
@chat_options
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
    "--state-store",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Look up in this folder how much of the prompt was read before, read only the rest, and save it there.",
)
@click.option(
    "--state-store-bytes",
    type=Bytes(),
    help="Most bytes of that folder, e.g. 200G. What was used longest ago goes first. By default there is no limit.",
)
@runtime_options
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object when it is complete.")
@click.pass_obj
def generate(
    console: Console,
    /,
    bundle: Path,
    weights: Path | None,
    prompt: str | None,
    prompt_file: str | None,
    chat: bool,
    literal: bool,
    max_context: int | None,
    save_state: Path | None,
    load_state: Path | None,
    state_store: Path | None,
    state_store_bytes: int | None,
    runtime: str,
    cpu_math: str | None,
    as_json: bool,
    system: str | None,
    template_var: tuple[tuple[str, object], ...],
    chat_template: str | None,
    **sampling: Unpack[Sampling],
) -> None:
    """Answer a prompt with a bundle, and print the text while it is generated.

    With --save-state, a command that ends early, for example by Ctrl-C, saves what has run by then.

    For example:

    \b
      sala-export generate sala.sala --chat --prompt "What is a state?"
      sala-export generate sala.sala --prompt-file book.txt --save-state book.state
      sala-export generate sala.sala --prompt-file book.txt --prompt "Who wrote the letter?" --state-store states/
      sala-export generate sala.sala --prompt "The sky is" --json
    """
    from ..loading import require_host_room

    if prompt is None and prompt_file is None:
        raise RequestError("give the prompt as --prompt TEXT, as --prompt-file FILE, or as both")
    options = ChatOptions(system=system, template_var=template_var, chat_template=chat_template)
    require_sense(options, chat=chat, goes_on=load_state is not None)
    with ExitStack() as stack:
        source = PromptSource.open(prompt, prompt_file, stack)
        target = None if save_state is None else open_target(save_state, stack)
        if load_state is not None:
            OpenedFile.open(load_state, error=StateError)
        store = open_store(state_store, state_store_bytes, load_state=load_state)
        opened, tokenizer = open_text_model(bundle, runtime=runtime, weights=weights)
        chosen = Chat.choose(tokenizer, options) if chat else None
        if chosen is not None:
            chosen.try_out(source, goes_on=load_state is not None)
        model = load_weights(console, opened, tokenizer, runtime=runtime, cpu_math=cpu_math)
        model.check_generate(**sampling)
        if max_context is not None:
            require_host_room(model, opened.config, "--max-context", max_context)
        encode = partial(prompt_ids, source, tokenizer, chat=chosen, literal=literal, stop_tokens=model.stop_token_ids)
        places = _Places(load_state, target, store)
        session, read = _begin(console, model, source, encode, places, max_context, sampling["max_new_tokens"])
        # A log that nobody reads keeps no prompt from running, so there only a warning comes before it.
        later = show_runtime(console, model, opened, only_warn=not console.is_terminal)
        with saved_at_the_end(console, session, target):
            read()
            if later:
                console.print(later, soft_wrap=True)
            _answer(console, session, tokenizer, sampling, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where states come from and go to, as the options say."""

    load_state: Path | None
    target: StateTarget | None
    store: StateStore | None


def _begin(
    console: Console,
    model: Model,
    source: PromptSource,
    encode: Callable[..., Iterator[list[int]]],
    places: _Places,
    max_context: int | None,
    answer_tokens: int,
) -> tuple[Session, Callable[[], None]]:
    """Make the session that the prompt comes into. Returns it, and what reads the prompt.

    Args: encode: gives the tokens of the prompt, behind a context, as `prompt_ids` does.
    """
    target = places.target
    if places.store is not None:
        context = NewContext(max_context or model.default_max_context)
        ids = [*encode(context, fills=False)]
        if target is not None:
            require_room(target, model, context, source.tokens_read + answer_tokens)
        stored = StoredPrompt(console, places.store, model, source, ids)
        session = stored.begin(max_context)
        return session, partial(stored.read, session)
    if places.load_state is None:
        session = model.session(max_context=max_context)
    else:
        session = model.restore(places.load_state, max_context=max_context)
    pieces: Iterable[list[int]] = encode(session, fills=target is not None and source.file is not None)
    if source.file is None:  # a prompt that is known whole is refused whole
        pieces = [*pieces]
    if target is not None:
        require_room(target, model, session, source.tokens_read + answer_tokens)
    return session, partial(_prefill, console, session, pieces, source, goes_on_after_error=target is not None)


def _answer(console: Console, session: Session, tokenizer: Tokenizer, sampling: Sampling, *, as_json: bool) -> None:
    if as_json:
        print_json(describe_answer(session, tokenizer, sampling))
    elif sampling["max_new_tokens"]:
        show_answer(console, session, tokenizer, sampling)


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
