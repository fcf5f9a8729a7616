"""Chat templates of a checkpoint, tried before somebody builds a bundle with them."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import BundleError, SalaError
from ..files import TextFile
from ..specs import TOKENIZER_FILE
from .chat import DEFAULT_TEMPLATE, ChatTemplate
from .text import Tokenizer

_HELLO = {"role": "user", "content": "Hello"}
_CONVERSATIONS = ([_HELLO], [_HELLO, {"role": "assistant", "content": "Hello. What can I do for you?"}, _HELLO])


def chat_faults(files: Mapping[str, TextFile]) -> list[str]:
    """What is wrong with the tokenizer or its chat templates, in one line each: a template that fails, for example.

    Args: files: as for `Tokenizer.from_files`. Without tokenizer.json, there is nothing to be wrong.
    """
    if TOKENIZER_FILE not in files:
        return []
    try:
        chat = Tokenizer.from_files(files).chat
    except BundleError as error:
        return [str(error)]
    if chat is None:
        return []
    # Those with other names may be for documents, or for tools.
    talks = {DEFAULT_TEMPLATE} if len(chat.names) > 1 else {*chat.names}
    faults = [fault for name in chat.names if (fault := _fault(chat.named(name), talks=name in talks))]
    return [f"{fault}; text without --chat works" for fault in faults]


def _fault(template: ChatTemplate, *, talks: bool) -> str | None:
    """Args: talks: it is for conversations."""
    try:
        template.compile()
        for messages in _CONVERSATIONS if talks else ():
            template.render(messages)
    except SalaError as error:
        return str(error)
    return None
