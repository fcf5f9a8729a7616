"""Messages of a chat, in OpenAI's form, and as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ApiError, invalid, unsupported
from ..json_body import json_value
from .parameters import Refusing

MOST_MESSAGES = 100_000
MOST_TOOLS = 1024


class TextPart(Refusing):
    type: Literal["text"]
    text: str


class OtherPart(Refusing):
    """An image, a file, audio: refused with its type."""

    type: Literal["image_url", "input_audio", "file", "video_url", "refusal"]
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    video_url: Any = None
    refusal: Any = None


Content = str | list[TextPart | OtherPart]


class FunctionCall(Refusing):
    name: str = Field(min_length=1, max_length=256)
    arguments: str = Field(default="{}", description="A JSON object, as text.")


class MessageToolCall(Refusing):
    id: str | None = Field(default=None, max_length=1024)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Refusing):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(default=None, max_length=1024)
    tool_calls: list[MessageToolCall] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_call_id: str | None = Field(default=None, max_length=1024)
    reasoning_content: str | None = Field(default=None, description="What the model thought before this answer.")
    reasoning: str | None = Field(default=None, description="Another name of reasoning_content.")
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class Function(Refusing):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,256}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of the arguments.")
    strict: bool | None = None


class ChatTool(Refusing):
    type: Literal["function"]
    function: Function


class NamedFunction(Refusing):
    name: str


class NamedTool(Refusing):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates of Hugging Face's convention take them.

    Texts are strings, `developer` is `system`, and arguments of tool calls are objects.
    Raises: ApiError naming the message that is wrong.
    """
    return [_template_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def template_tools(tools: Sequence[ChatTool]) -> list[dict[str, Any]]:
    """Tools as chat templates take them."""
    return [tool.model_dump(exclude_none=True) for tool in tools]


def _template_message(message: Message, where: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if message.content is None and (role != "assistant" or not (message.tool_calls or message.reasoning_content)):
        raise invalid(f"{where}.content", f"{where} has no content: give a text")
    fields: dict[str, Any] = {"role": role, "content": _text(message.content, f"{where}.content")}
    if message.name is not None:
        fields["name"] = message.name
    reasoning = message.reasoning_content if message.reasoning is None else message.reasoning
    if reasoning is not None:
        fields["reasoning_content"] = reasoning
    if message.tool_calls:
        if role != "assistant":
            raise invalid(f"{where}.tool_calls", f"{where} has tool_calls and is of role {role}: only assistants call")
        calls = enumerate(message.tool_calls)
        fields["tool_calls"] = [_call(call, f"{where}.tool_calls[{place}]") for place, call in calls]
    if role == "tool":
        if message.tool_call_id is None:
            raise invalid(f"{where}.tool_call_id", f"{where} is of role tool: give tool_call_id, the call it answers")
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _text(content: Content | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for place, part in enumerate(content):
        if isinstance(part, OtherPart):
            raise unsupported(f"{where}[{place}]", f"the model reads text, and this is of type {part.type}")
        texts.append(part.text)
    return "".join(texts)


def _call(call: MessageToolCall, where: str) -> dict[str, Any]:
    arguments = call_arguments(call.function.arguments, f"{where}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def call_arguments(text: str, where: str) -> dict[str, Any]:
    """The arguments of an earlier call, as chat templates take them. Raises: ApiError if the text is no JSON object."""
    try:
        arguments = json_value(text or "{}")
    except (json.JSONDecodeError, ApiError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(where, f"{where} is no JSON object, as text")
    return arguments
