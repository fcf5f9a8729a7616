"""Chat templates in the styles of public models render as transformers renders them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tokenizers
import transformers
from support.chat_templates import PUBLIC_STYLES

from sala_export.errors import SessionError
from sala_export.runtime.chat import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a \u57ce\u5e02 & more.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
                "required": ["place"],
            },
        },
    }
]
CALL = {"id": "abcdefghi", "function": {"name": "weather", "arguments": {"place": "K\u00f6ln", "days": [1, 2]}}}
HELLO = {"role": "user", "content": "  What's the weather?\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nHard to say.\n</think>\n\nRainy <b>today</b>.\n"}
SYSTEM = {"role": "system", "content": "Be brief. \u4f60\u597d"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [HELLO],
    "system message": [SYSTEM, HELLO],
    "several turns": [SYSTEM, HELLO, THOUGHT, {"role": "user", "content": "And tomorrow?"}],
    "ends with an answer": [HELLO, THOUGHT],
    "empty": [{"role": "user", "content": ""}],
    "fields that are None": [HELLO | {"name": None}, THOUGHT | {"tool_calls": None, "reasoning_content": None}, HELLO],
    "reasoning beside": [HELLO, {"role": "assistant", "content": "Rain.", "reasoning": "Clouds."}],
    "tool call": [
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sky": "grey"}', "tool_call_id": "abcdefghi"},
    ],
}
VARIABLES: dict[str, dict[str, Any]] = {
    "none": {},
    "tools": {"tools": TOOLS},
    "documents": {"documents": [{"title": "A", "text": "b\nc"}, {"title": "\u5f53", "text": ""}]},
    "no thinking": {"enable_thinking": False},
    "date": {"date_string": "26 Jul 2024"},
    "other start": {"bos_token": "<other>"},
}


@cache
def reference(source: str) -> transformers.PreTrainedTokenizerFast:
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    return transformers.PreTrainedTokenizerFast(tokenizer_object=empty, chat_template=source, **SPECIAL)


def expected(source: str, messages: list[dict[str, Any]], **variables: Any) -> str | Exception:
    """What transformers writes, or why it does not."""
    try:
        return str(reference(source).apply_chat_template(messages, tokenize=False, **variables))
    except Exception as error:
        return error


@pytest.mark.parametrize("style", PUBLIC_STYLES)
def test_template_renders_as_in_transformers(style: str) -> None:
    source, served = PUBLIC_STYLES[style], 0
    template = ChatTemplate(source, SPECIAL, "chat_template.jinja")
    for messages in CONVERSATIONS.values():
        for variables in VARIABLES.values():
            for prompted in (True, False):
                wanted = expected(source, messages, add_generation_prompt=prompted, **variables)
                if isinstance(wanted, str):
                    assert template.render(messages, add_generation_prompt=prompted, **variables) == wanted
                    served += 1
                else:
                    with pytest.raises(SessionError, match="refuses the messages"):
                        template.render(messages, add_generation_prompt=prompted, **variables)
    assert served >= 24
