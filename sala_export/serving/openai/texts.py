"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field

from ...errors import SessionError
from ..errors import invalid
from ..prompts import Prompt
from ..service import Service
from .messages import MOST_MESSAGES, MOST_TOOLS, ChatTool, Message, template_messages, template_tools
from .parameters import Refusing, TokenIds

_ALWAYS_TOLD = ("bos_token", "eos_token", "pad_token", "unk_token")


class TokenizeRequest(Refusing):
    """A text, or a conversation, to be encoded."""

    model: str | None = Field(default=None, max_length=1024)
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MOST_MESSAGES)
    tools: list[ChatTool] | None = Field(default=None, max_length=MOST_TOOLS)
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = Field(default=True, description="Begin the text as the tokenizer begins texts.")
    return_token_strs: bool = False

    async def answer(self, service: Service) -> dict[str, Any]:
        """Raises: ApiError or SalaError for what is wrong with the request."""
        if self.model is not None:
            service.require_model(self.model)
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "give either prompt or messages")
        if self.messages is not None:
            prompt = await asyncio.to_thread(
                service.prompts.of_messages,
                template_messages(self.messages),
                tools=template_tools(self.tools or ()) or None,
                variables=self.chat_template_kwargs,
                add_generation_prompt=self.add_generation_prompt,
            )
        else:
            text = self.prompt or ""
            prompt = await asyncio.to_thread(service.prompts.of_text, text, add_special_tokens=self.add_special_tokens)
        return await asyncio.to_thread(self._described, service, prompt)

    def _described(self, service: Service, prompt: Prompt) -> dict[str, Any]:
        ids = prompt.ids.tolist()
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": service.answers.max_context, "tokens": ids}
        if self.return_token_strs:
            answer["token_strs"] = [service.tokenizer.token(token_id) for token_id in ids]
        return answer


class DetokenizeRequest(Refusing):
    """Token ids, to be decoded."""

    model: str | None = Field(default=None, max_length=1024)
    tokens: TokenIds

    async def answer(self, service: Service) -> dict[str, Any]:
        """Raises: ApiError for another model; SessionError for ids that are no tokens."""
        if self.model is not None:
            service.require_model(self.model)
        if (largest := max(self.tokens, default=0)) >= service.model.vocab_size:
            raise SessionError(
                f"token {largest} is outside the vocabulary, which ends at {service.model.vocab_size - 1}"
            )
        return {"prompt": await asyncio.to_thread(service.tokenizer.decode, self.tokens)}


def described_tokenizer(service: Service) -> dict[str, Any]:
    """What a client needs besides to work as if it had the tokenizer: special tokens and the chat template."""
    given = service.tokenizer.special_tokens
    names = dict.fromkeys(_ALWAYS_TOLD) | given
    return {**names, "chat_template": service.prompts.template_source}
