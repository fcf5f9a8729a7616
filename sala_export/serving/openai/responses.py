"""Requests to `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..chats import ANY_TOOL, ChatTurn, PreparedChat, prepare
from ..errors import unsupported
from ..service import Service
from .messages import MOST_MESSAGES, MOST_TOOLS, Function
from .parameters import Accepted, Partial, Refusing, SamplingParameters
from .response_format import JsonObject, TextFormat
from .responses_items import Item, template_messages


class FunctionTool(Function):
    """A function of the client."""

    type: Literal["function"]
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_other_tools(cls, fields: Any) -> Any:
        """Raises: ApiError for a tool that is no function."""
        if isinstance(fields, dict) and fields.get("type", "function") != "function":
            raise unsupported("tools", f"the server has no tools of its own, and this is of type {fields['type']!r}")
        return fields


class NamedChoice(Refusing):
    type: Literal["function"]
    name: str

    @model_validator(mode="before")
    @classmethod
    def refuse_other_choices(cls, fields: Any) -> Any:
        """Raises: ApiError for what names no function."""
        if isinstance(fields, dict) and fields.get("type", "function") != "function":
            raise unsupported("tool_choice", f"it names a function, and this is of type {fields['type']!r}")
        return fields


class SchemaFormat(Refusing):
    type: Literal["json_schema"]
    name: str = Field(max_length=256)
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema", min_length=1)
    strict: bool | None = None


class TextConfig(Partial):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {"verbosity": "say in a message how long the answer should be"}

    format: Annotated[TextFormat | JsonObject | SchemaFormat, Field(discriminator="type")] | None = None


class ReasoningConfig(Refusing):
    """What a client may say of thinking. It counts if the chat template has the variable `enable_thinking`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="`none`: the model does not think. All others are the same."
    )
    summary: Literal["auto"] | None = Field(default=None, description="What the model thinks comes as it is.")
    generate_summary: Literal["auto"] | None = Field(default=None, description="Another name of summary.")


class ObfuscationOptions(Refusing):
    include_obfuscation: bool = Field(default=False, description="Accepted and without effect.")


class ResponsesRequest(Accepted):
    """A request for the next items of a conversation."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "background": "the server keeps no answers: take a stream",
        "context_management": "the server changes no items",
        "conversation": "the server keeps no conversations: send all items in input",
        "max_tool_calls": "the server has no tools of its own",
        "moderation": "the server judges no text",
        "previous_response_id": "the server keeps no answers: send all items in input",
        "prompt": "the server keeps no prompts: write it into instructions or input",
        "prompt_cache_options": "beginnings of prompts are found without it",
        "store": "the server keeps no answers",
        "top_logprobs": "ask /v1/chat/completions for them",
    }

    model: str = Field(min_length=1, max_length=1024)
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    tools: list[FunctionTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    stream: bool | None = None
    stream_options: ObfuscationOptions | None = None
    truncation: Literal["disabled"] | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = Field(
        default=None, description="Accepted and without effect: what the model thinks comes as text."
    )

    async def prepare(self, service: Service) -> PreparedChat:
        """Look at the request, and make its prompt. Raises: ApiError or SalaError for what is wrong with it."""
        service.require_model(self.model)
        turn = ChatTurn(
            messages=template_messages(self.instructions, self.input),
            tools=self._offered_tools,
            forced_tool=self._forced_tool,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            variables=self._variables(service),
            json_schema=self._json_schema,
            sampling=SamplingParameters(temperature=self.temperature, top_p=self.top_p),
            max_new_tokens=self.max_output_tokens,
            max_tokens_param="max_output_tokens",
        )
        return await prepare(service, turn)

    def repeated(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        choice = self.tool_choice
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": self.reasoning.model_dump() if self.reasoning else {"effort": None, "summary": None},
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": self._format.model_dump(by_alias=True)},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedChoice) else choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "user": self.user,
        }

    @property
    def _format(self) -> TextFormat | JsonObject | SchemaFormat:
        return self.text.format if self.text and self.text.format else TextFormat(type="text")

    @property
    def _json_schema(self) -> Mapping[str, Any] | None:
        """The schema that the answer must fit, as `ChatTurn` has it."""
        if isinstance(self._format, SchemaFormat):
            return self._format.json_schema
        return {} if isinstance(self._format, JsonObject) else None

    @property
    def _offered_tools(self) -> list[dict[str, Any]]:
        if self.tool_choice == "none":
            return []
        fields = {"name", "description", "parameters", "strict"}
        functions = [tool.model_dump(include=fields, exclude_none=True) for tool in self.tools or ()]
        return [{"type": "function", "function": function} for function in functions]

    @property
    def _forced_tool(self) -> str | None:
        if isinstance(self.tool_choice, NamedChoice):
            return self.tool_choice.name
        return ANY_TOOL if self.tool_choice == "required" else None

    def _variables(self, service: Service) -> dict[str, Any]:
        effort = self.reasoning.effort if self.reasoning else None
        if effort is None or not service.prompts.reads("enable_thinking"):
            return {}
        return {"enable_thinking": effort != "none"}
