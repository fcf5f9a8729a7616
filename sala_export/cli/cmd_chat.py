"""`sala-export chat`"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click
from rich.console import Console

from ..errors import SalaError
from .chat_input import Messages
from .chat_options import Chat, ChatOptions, chat_options
from .conversation import Conversation
from .generate_display import PrefillDisplay
from .generate_state import open_target, saved_at_the_end
from .options import BundlePath, Tokens, weights_option
from .sampling_options import Sampling, sampling_options
from .signals import forget_interrupt, raise_received
from .streams import OutputError
from .text_model import load_weights, open_text_model, runtime_options, show_runtime, show_text, stream_answer

if TYPE_CHECKING:
    from ..runtime.session import PrefillProgress
    from ..runtime.text import Tokenizer

_HELP = '''\
/system TEXT   let this be the system message from now on; without TEXT, let there be none
/reset         begin a new conversation
/exit          end the chat, as Ctrl-D does
"""            begins a message of several lines, and ends it
Ctrl-C         stops an answer; what there is of it stays in the conversation'''


@click.command(context_settings={"default_map": {"max_new_tokens": 4096}})
@click.argument("bundle", type=BundlePath())
@weights_option
@chat_options
@sampling_options
@click.option("--max-context", type=Tokens(), help="Room for the whole conversation, e.g. 64K or 1M.")
@click.option(
    "--save-state",
    type=click.Path(path_type=Path),
    help="Save the context to this file at the end. `generate --chat --load-state` goes on from it.",
)
@runtime_options
@click.pass_obj
def chat(
    console: Console,
    /,
    bundle: Path,
    weights: Path | None,
    max_context: int | None,
    save_state: Path | None,
    runtime: str,
    cpu_math: str | None,
    system: str | None,
    template_var: tuple[tuple[str, object], ...],
    chat_template: str | None,
    **sampling: Unpack[Sampling],
) -> None:
    """Talk with a model in the terminal. It remembers the conversation until you leave.

    Each line is a message, also from a pipe. Type /help for the commands. For example:

    \b
      sala-export chat sala.sala --system "Be brief."
    """
    from ..loading import require_host_room

    with ExitStack() as stack:
        target = None if save_state is None else open_target(save_state, stack)
        source, tokenizer = open_text_model(bundle, runtime=runtime, weights=weights)
        options = ChatOptions(system=system, template_var=template_var, chat_template=chat_template)
        template = Chat.choose(tokenizer, options)
        template.turn("Hello", goes_on=False)
        messages = Messages()
        model = load_weights(console, source, tokenizer, runtime=runtime, cpu_math=cpu_math)
        model.check_generate(**sampling)
        if max_context is not None:
            require_host_room(model, source.config, "--max-context", max_context)
        session = model.session(max_context=max_context)
        conversation = Conversation(session, tokenizer, template, model.stop_token_ids)
        show_runtime(console, model, source, only_warn=not messages.is_terminal)
        if messages.is_terminal:
            console.print(f"{session.max_context:,} tokens of context. /help lists the commands, Ctrl-D ends the chat.")
        with saved_at_the_end(console, session, target):
            _Talk(console, messages, conversation, tokenizer, sampling).run()


class _Talk:
    """Reads messages and answers them until the input ends."""

    def __init__(
        self,
        console: Console,
        messages: Messages,
        conversation: Conversation,
        tokenizer: Tokenizer,
        sampling: Sampling,
    ) -> None:
        self._console = console
        self._messages = messages
        self._conversation = conversation
        self._tokenizer = tokenizer
        self._sampling = sampling

    def run(self) -> None:
        """Raises: KeyboardInterrupt for a second Ctrl-C at the prompt and for other signals; SalaError from a pipe."""
        was_interrupted = False
        goes_on = True
        while goes_on:
            try:
                message = self._messages.read()
                was_interrupted = False
                goes_on = message is not None and self._take(message.strip("\n"))
            except KeyboardInterrupt:
                if was_interrupted or not forget_interrupt():
                    raise
                was_interrupted = True
                self._tell("")
                self._tell("Ctrl-D or /exit ends the chat, and so does a second Ctrl-C")
            except OutputError:
                raise
            except SalaError as error:
                # Whoever types can do something about it.
                if not self._messages.is_terminal:
                    raise
                self._tell(f"error: {error}")

    def _take(self, message: str) -> bool:
        """Answer a message, or do what it commands. False if it ends the chat."""
        if message.startswith("/") and "\n" not in message:
            return self._obey(message)
        if message.strip():
            self._answer(message)
        return True

    def _obey(self, message: str) -> bool:
        command, _, text = message.partition(" ")
        match command:
            case "/exit":
                return False
            case "/help":
                for line in _HELP.splitlines():
                    self._tell(line)
            case "/reset":
                self._conversation.reset()
            case "/system":
                self._conversation.system = text.strip() or None
            case _:
                self._tell(f"there is no command {command}: /help lists them. A message may begin with a space")
        return True

    def _answer(self, message: str) -> None:
        session = self._conversation.session
        ids, again = self._conversation.ask(message)
        if again:
            self._tell(f"the chat template writes the conversation so far differently: {len(ids):,} tokens run again")
        shown: list[str] = []
        try:
            self._prefill(ids)
            stream_answer(session, self._tokenizer, self._sampling, shown)
        except KeyboardInterrupt:
            if not forget_interrupt():
                raise
            show_text("\n")
            if not shown:
                self._tell("stopped before an answer, so the message is not part of the conversation")
                return
        except OutputError:
            raise
        except SalaError:
            session.reset()  # a step that failed has lost the context
            raise
        self._conversation.answered("".join(shown))
        self._tell_end(session.finish_reason)

    def _prefill(self, ids: list[int]) -> None:
        with PrefillDisplay(self._console, lambda: None, totals=False) as display:

            def on_progress(progress: PrefillProgress) -> None:
                display(progress)
                raise_received()

            self._conversation.session.prefill(ids, on_progress=on_progress)

    def _tell_end(self, reason: str | None) -> None:
        if reason == "max_context":
            self._tell("the context is full: /reset begins a new conversation, and a larger --max-context holds more")
        elif reason == "max_new_tokens":
            most = self._sampling["max_new_tokens"]
            self._tell(f"the answer was cut off after {most:,} tokens: --max-new-tokens allows more")

    def _tell(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
