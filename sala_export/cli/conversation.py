"""A conversation whose context is always what the chat template writes for its messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..errors import SessionError

if TYPE_CHECKING:
    from ..runtime.chat_probes import Message
    from ..runtime.session import Session
    from ..runtime.text import Tokenizer
    from .chat_options import Chat

_TOKENS_BEFORE = 8
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Conversation:
    """Messages, and the session that has read them.

    Most templates write a longer conversation as an addition to the shorter one, and only the addition runs. Others
    write the earlier messages anew, for example without what the model thought. Then all of it runs again.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, chat: Chat, stop_tokens: Collection[int]) -> None:
        self.session = session
        self.system = chat.system
        """The message in front of all others, which may change at any time."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._stop_tokens = stop_tokens
        self._messages: list[Message] = []
        self._asked = ""
        """The text of the last question with all before it."""
        self._asked_tokens = 0

    def reset(self) -> None:
        """Forget the messages, but not the system message."""
        self._messages.clear()
        self.session.reset()

    def ask(self, question: str) -> tuple[list[int], int]:
        """Write a question behind the conversation. It joins once `answered` tells what came of it.

        Returns: the ids to prefill, and how many tokens that the session had read run again with them.
        Raises: SessionError if the template refuses the messages, or if they do not fit into the context.
        """
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*system, *self._messages, {"role": "user", "content": question}]
        text = self._chat.template.render(messages, **self._chat.variables)
        whole = self._tokenizer.encode(text, add_special_tokens=False)
        position = self.session.position
        addition = self._addition(text, whole)
        ids = whole if addition is None else addition
        needed, room = len(ids) + (0 if addition is None else position), self.session.max_context
        # The answer needs a token at least.
        if needed >= room:
            raise SessionError(
                f"the conversation takes {needed:,} tokens, and the context has room for {room:,}: /reset begins a new "
                "one, and a larger --max-context holds more"
            )
        if addition is None:
            self.session.reset()
        self._asked, self._asked_tokens = text, needed
        self._question = question
        return ids, position if addition is None else 0

    def answered(self, answer: str) -> None:
        """Take the question and its answer into the conversation."""
        self._messages += [{"role": "user", "content": self._question}, {"role": "assistant", "content": answer}]

    def _addition(self, text: str, whole: list[int]) -> list[int] | None:
        """Ids that make the context what the text says. None if it would have to lose some."""
        context = self.session.tokens.tolist()
        if whole[: len(context)] == context and len(whole) > len(context):
            return whole[len(context) :]
        # A model may spell its answer with other tokens than the tokenizer would.
        held = self._text_of_context(context)
        if held is None or not text.startswith(held):
            return None
        addition = self._tokenizer.encode(text.removeprefix(held), add_special_tokens=False)
        # Where an answer was cut off, the first of what follows may depend on it.
        return addition if addition and whole[-len(addition) :] == addition else None

    def _text_of_context(self, context: list[int]) -> str | None:
        """The last question with all before it, and the answer. None if the answer has no text of its own."""
        answer = context[self._asked_tokens :]
        if not self._asked or not answer:
            return None
        end = ""
        if answer[-1] in self._stop_tokens:
            end = self._tokenizer.token(answer.pop()) or ""
        decoder = self._tokenizer.stream_decoder()
        # The first word of a text may lose its space, and the answer does not begin one.
        for token in context[: self._asked_tokens][-_TOKENS_BEFORE:]:
            decoder.push(token)
        text = "".join(map(decoder.push, answer)) + decoder.finish()
        has_special = any(not self._tokenizer.decode([token]) for token in answer)
        return None if has_special or _REPLACEMENT in text else self._asked + text + end
