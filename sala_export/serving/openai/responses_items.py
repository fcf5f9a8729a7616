"""Items of OpenAI's Responses that clients send, and what they are to chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from ..errors import invalid, unsupported
from .messages import call_arguments
from .parameters import Refusing

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Field(max_length=1024)]


class ItemFields(Refusing):
    """A part of an item, or an item. Null is as good as nothing: clients send back what they got."""

    @model_validator(mode="before")
    @classmethod
    def drop_null(cls, fields: Any) -> Any:
        """Leave out what is null."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class ItemText(ItemFields):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = Field(default=None, description="Accepted and without effect.")
    logprobs: list[Any] | None = Field(default=None, description="Accepted and without effect.")
    prompt_cache_breakpoint: dict[str, Any] | None = Field(
        default=None, description="Accepted and without effect: beginnings of prompts are found."
    )


class ItemOther(BaseModel):
    """An image, a file: refused with its type."""

    type: Literal["input_image", "input_file", "input_audio", "refusal"]


Content = str | list[Annotated[ItemText | ItemOther, Field(discriminator="type")]]


class MessageItem(ItemFields):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = Field(
        default=None, description="Accepted and without effect: chat templates have no place for it."
    )


class FunctionCallItem(ItemFields):
    type: Literal["function_call"]
    call_id: Id
    name: str = Field(min_length=1, max_length=256)
    arguments: str = Field(description="A JSON object, as text.")
    id: Id | None = None
    status: Status | None = None


class FunctionCallOutputItem(ItemFields):
    type: Literal["function_call_output"]
    call_id: Id
    output: Content
    id: Id | None = None
    status: Status | None = None


class ReasoningText(ItemFields):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(ItemFields):
    type: Literal["reasoning"]
    id: Id | None = None
    summary: list[ReasoningText] = Field(default_factory=list, description="What counts if there is no content.")
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


class OtherItem(BaseModel):
    """What other servers write or keep: refused with its type."""

    type: Literal[
        "item_reference",
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "configuration_update",
        "custom_tool_call",
        "custom_tool_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    ]


_KNOWN = ("message", "function_call", "function_call_output", "reasoning")


def _type_of(item: Any) -> str:
    # A message need not tell its type.
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if kind in _KNOWN else "other"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[OtherItem, Tag("other")],
    Discriminator(_type_of),
]


def template_messages(instructions: str | None, items: str | Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages of a chat template. What the assistant thinks, says and calls in one turn is one message.

    Raises: ApiError naming the item that is wrong.
    """
    made = _Messages()
    if instructions is not None:
        made.add({"role": "system", "content": instructions})
    if isinstance(items, str):
        made.add({"role": "user", "content": items})
    else:
        for place, item in enumerate(items):
            made.add_item(item, f"input[{place}]")
    return made.all


class _Messages:
    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def add(self, message: dict[str, Any]) -> None:
        self.all.append(message)

    def add_item(self, item: Item, where: str) -> None:
        match item:
            case MessageItem(role="assistant"):
                self._turn("content", "tool_calls")["content"] = _text(item.content, f"{where}.content")
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                self.add({"role": role, "content": _text(item.content, f"{where}.content")})
            case ReasoningItem():
                turn = self._turn("reasoning_content", "content", "tool_calls")
                turn["reasoning_content"] = _reasoning(item, where)
            case FunctionCallItem():
                arguments = call_arguments(item.arguments, f"{where}.arguments")
                function = {"name": item.name, "arguments": arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                self._turn().setdefault("tool_calls", []).append(call)
            case FunctionCallOutputItem():
                content = _text(item.output, f"{where}.output")
                self.add({"role": "tool", "tool_call_id": item.call_id, "content": content})
            case _:
                raise unsupported(where, f"the server keeps no items and has no tools, and this is of type {item.type}")

    def _turn(self, *later: str) -> dict[str, Any]:
        """The assistant's message that a part belongs to: a new one if the last has parts that only come later."""
        if not self.all or self.all[-1]["role"] != "assistant" or any(self.all[-1].get(name) for name in later):
            self.add({"role": "assistant", "content": ""})
        return self.all[-1]


def _text(content: Content, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for place, part in enumerate(content):
        if isinstance(part, ItemOther):
            raise unsupported(f"{where}[{place}]", f"the model reads text, and this is of type {part.type}")
        texts.append(part.text)
    return "".join(texts)


def _reasoning(item: ReasoningItem, where: str) -> str:
    parts = item.summary if item.content is None else item.content
    if not parts and item.encrypted_content:
        raise invalid(f"{where}.encrypted_content", f"{where} is encrypted by another server: leave it out")
    return "".join(part.text for part in parts)
