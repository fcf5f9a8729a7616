"""Messages in Anthropic's form, and as chat templates take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ..errors import invalid, unsupported
from ..openai.parameters import Refusing

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,256}$")]
Id = Annotated[str, Field(min_length=1, max_length=1024)]


class CacheControl(Refusing):
    """Accepted and without effect: beginnings of prompts are found without it."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Refusing):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Refusing):
    type: Literal["thinking"]
    thinking: str
    signature: str = Field(default="", description="Accepted and without effect: this server signs nothing.")


class DirectCaller(Refusing):
    type: Literal["direct"]


class ToolUseBlock(Refusing):
    type: Literal["tool_use"]
    id: Id
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


class OtherBlock(BaseModel):
    """An image, a document, or what tools of other servers write: refused with its type."""

    type: Literal[
        "image",
        "document",
        "search_result",
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "tool_reference",
        "browser_state",
        "mcp_tool_use",
        "mcp_tool_result",
        "container_upload",
    ]


ResultBlock = Annotated[TextBlock | OtherBlock, Field(discriminator="type")]


class ToolResultBlock(Refusing):
    type: Literal["tool_result"]
    tool_use_id: Id
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = Field(default=None, description="The chat template of the model may read it.")
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock | OtherBlock, Field(discriminator="type")]


class BlockMessage(Refusing):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ClientTool(Refusing):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = Field(
        default=None, description="Accepted and without effect: arguments always come as they are written."
    )
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_server_tools(cls, fields: Any) -> Any:
        """Raises: ApiError for a tool that Anthropic's server would run or describe."""
        if isinstance(fields, dict) and fields.get("type") not in (None, "custom"):
            raise unsupported("tools", f"the server has no tools of its own, and this is of type {fields['type']!r}")
        return fields


def template_messages(
    system: str | Sequence[TextBlock] | None, messages: Sequence[BlockMessage]
) -> list[dict[str, Any]]:
    """Messages as chat templates of Hugging Face's convention take them.

    Results of tools are messages of their own, of the role `tool`.
    Raises: ApiError naming the block that is wrong.
    """
    made: list[dict[str, Any]] = []
    if system is not None:
        made.append({"role": "system", "content": _text(system, "system")})
    for place, message in enumerate(messages):
        where = f"messages[{place}].content"
        if isinstance(message.content, str):
            made.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            made.append(_assistant_message(message.content, where))
        else:
            made += _messages_of(message.role, message.content, where)
    return made


def template_tools(tools: Sequence[ClientTool]) -> list[dict[str, Any]]:
    """Tools as chat templates take them, which is OpenAI's form."""
    made = []
    for tool in tools:
        function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.strict is not None:
            function["strict"] = tool.strict
        made.append({"type": "function", "function": function})
    return made


def _messages_of(role: str, blocks: Sequence[Block], where: str) -> list[dict[str, Any]]:
    """Messages of what is not the assistant's: texts that follow each other are one."""
    made: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            if not made or made[-1]["role"] != role:
                made.append({"role": role, "content": ""})
            made[-1]["content"] += block.text
        elif isinstance(block, ToolResultBlock) and role == "user":
            content = _text(block.content or "", f"{where}[{place}].content")
            result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
            made.append(result if block.is_error is None else {**result, "is_error": block.is_error})
        else:
            raise _misplaced(block, role, f"{where}[{place}]")
    return made or [{"role": role, "content": ""}]


def _assistant_message(blocks: Sequence[Block], where: str) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case _:
                raise _misplaced(block, "assistant", f"{where}[{place}]")
    made: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        made["reasoning_content"] = "".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return made


def _text(content: str | Sequence[TextBlock | OtherBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for place, block in enumerate(content):
        if not isinstance(block, TextBlock):
            raise _misplaced(block, "tool", f"{where}[{place}]")
        texts.append(block.text)
    return "".join(texts)


def _misplaced(block: Block, role: str, where: str) -> Exception:
    if isinstance(block, OtherBlock):
        return unsupported(where, f"the model reads text, and this is of type {block.type}")
    return invalid(where, f"{where} is of type {block.type}, which a message of role {role} cannot have")
