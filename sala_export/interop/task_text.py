"""Text of tasks as token ids and chats, by the rules with which lm-evaluation-harness reads them for other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SessionError, UnsupportedError
from .shared_contexts import Ids

if TYPE_CHECKING:
    from ..runtime.chat import ChatTemplate
    from ..runtime.text import Tokenizer


class TaskText:
    """The tokenizer of a model, and its chat template, as tasks need them."""

    def __init__(self, tokenizer: Tokenizer, *, adds_beginning: bool, chat_variables: Mapping[str, object]) -> None:
        """Args: adds_beginning: begin texts as the tokenizer does; chat_variables: further ones of the template."""
        self._tokenizer = tokenizer
        self._adds_beginning = adds_beginning
        self._chat_variables = dict(chat_variables)
        self._chosen: ChatTemplate | None = None

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The tokens with which the tokenizer begins texts. It may have none."""
        plain = self._tokenizer.encode("a", add_special_tokens=False)
        whole = self._tokenizer.encode("a")
        return tuple(next(whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain))

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text.

        Args: add_special_tokens: begin the text as the tokenizer does. None: as `adds_beginning` says, but not a text
            that spells its beginning itself, as those of chat templates may.
        """
        if add_special_tokens is None:
            spelled = "".join(self._tokenizer.token(each) or "" for each in self.beginning[:1])
            begins_itself = bool(spelled) and text.startswith(spelled)
            add_special_tokens = self._adds_beginning and not begins_itself
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def stop_tokens(self, strings: Sequence[str]) -> list[int]:
        """Those of the strings that spell a special token, as ids: such tokens have no text in an answer."""
        encoded = (self._tokenizer.encode(each, add_special_tokens=False) for each in strings)
        return [ids[0] for ids in encoded if len(ids) == 1 and not self._tokenizer.decode(ids)]

    def choose_template(self, name: str | None) -> str:
        """Choose the chat template that `render` uses; the template itself. None: the model's first.

        Raises: UnsupportedError if there is none; RequestError if none has this name.
        """
        chosen = self._require_chat() if name is None else self._require_chat().named(name)
        if chosen.source is None:
            raise UnsupportedError(
                f"none of the chat templates is named default: give --apply_chat_template one of "
                f"{', '.join(chosen.names)}"
            )
        self._chosen = chosen
        return chosen.source

    def render(self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool) -> str:
        """Write a conversation as the chat template does.

        Args: add_generation_prompt: let it end where the model's answer begins. Without, it ends with the text of the
            last message, so that the model goes on with that.
        Raises: SessionError if the template refuses the messages; UnsupportedError if there is none.
        """
        text = self._template().render(messages, add_generation_prompt=add_generation_prompt, **self._chat_variables)
        if add_generation_prompt:
            return text
        last = str(messages[-1]["content"]).strip()
        end = text.rfind(last)
        if end < 0:
            raise SessionError(
                "the chat template does not write the last message as it is, so the model cannot go on with it: "
                "leave out --apply_chat_template, or choose tasks whose answers have no prefix"
            )
        return text[: end + len(last)]

    @property
    def template_digest(self) -> str:
        """Tells chat templates apart, with the variables that they get."""
        said = f"{self._template().source}\n{sorted(self._chat_variables.items())}"
        return sha256(said.encode()).hexdigest()[:16]

    def _template(self) -> ChatTemplate:
        return self._chosen or self._require_chat()

    def _require_chat(self) -> ChatTemplate:
        chat = self._tokenizer.chat
        if chat is None:
            raise UnsupportedError("the model has no chat template: leave out --apply_chat_template")
        return chat


def as_ids(ids: Sequence[int]) -> Ids:
    """Token ids, int32 [tokens]."""
    return np.asarray(ids, np.int32)
