"""Chat templates of a checkpoint, tried before somebody builds a bundle with them."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.added_tokens import special_tokens
from ..checkpoint.tokenizer_files import TOKENIZER_CONFIG_FILE, TextFields
from ..errors import BundleError, SalaError
from ..files import TextFile
from .chat import DEFAULT_TEMPLATE, ChatTemplate, chat_of
from .text_fields import chat_templates

_HELLO = {"role": "user", "content": "Hello"}
_CONVERSATIONS = ([_HELLO], [_HELLO, {"role": "assistant", "content": "Hello. What can I do for you?"}, _HELLO])


def chat_faults(files: Mapping[str, TextFile]) -> list[str]:
    """What is wrong with the chat templates, in one line each. They do not compile, or fail at a greeting.

    Args: files: as for `Tokenizer.from_files`. None of them need be there.
    """
    try:
        config = TextFields(files.get(TOKENIZER_CONFIG_FILE), TOKENIZER_CONFIG_FILE)
        chat = chat_of(chat_templates(config, files), special_tokens(files))
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
