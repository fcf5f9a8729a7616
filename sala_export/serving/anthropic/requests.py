"""Requests to `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..chats import ANY_TOOL, ChatTurn, PreparedChat, prepare
from ..errors import invalid
from ..openai.messages import MOST_MESSAGES, MOST_TOOLS
from ..openai.parameters import Partial, Refusing, SamplingParameters, Stop
from ..service import Service
from .content import BlockMessage, CacheControl, ClientTool, Name, TextBlock, template_messages, template_tools


class ToolChoice(Refusing):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = Field(default=None, description="Of the tool, if the type is `tool`.")
    disable_parallel_tool_use: bool = False


class Thinking(Refusing):
    """A model thinks or does not as its chat template has it, if that has no variable `enable_thinking`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(
        default=None, ge=1, lt=2**31, description="Accepted and without effect: `max_tokens` bounds the whole answer."
    )
    display: Literal["summarized"] | None = Field(default=None, description="What the model thinks comes as it is.")


class JsonFormat(Refusing):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema", min_length=1)


class OutputConfig(Partial):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {"effort": "the model has no levels of effort: use thinking"}

    format: JsonFormat | None = None


class Metadata(Refusing):
    user_id: str | None = Field(default=None, max_length=1024, description="Accepted and without effect.")


class CountRequest(Partial):
    """A conversation whose tokens are counted."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "container": "the server runs no code",
        "context_management": "the server changes no messages",
        "diagnostics": "usage tells how many tokens were read before",
        "inference_geo": "the server is where it is",
        "mcp_servers": "the server calls no others",
        "user_profile_id": "the server keeps no profiles",
        "workspace_id": "the server has no workspaces",
    }

    model: str = Field(min_length=1, max_length=1024)
    messages: list[BlockMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    system: str | list[TextBlock] | None = None
    tools: list[ClientTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None

    async def answer(self, service: Service) -> dict[str, int]:
        """The tokens of the prompt. Raises: ApiError or SalaError for what is wrong with the request."""
        service.require_model(self.model)
        prompt = await asyncio.to_thread(
            service.prompts.of_messages,
            template_messages(self.system, self.messages),
            tools=self.offered_tools or None,
            variables=self.variables(service),
            goes_on=self.goes_on,
        )
        return {"input_tokens": len(prompt.ids)}

    @property
    def goes_on(self) -> bool:
        """True if the last message has a beginning of the answer."""
        return self.messages[-1].role == "assistant"

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, as chat templates take them."""
        has_none = self.tool_choice is not None and self.tool_choice.type == "none"
        return [] if has_none else template_tools(self.tools or ())

    def variables(self, service: Service) -> dict[str, Any]:
        """Variables of the chat template."""
        if self.thinking is None or not service.prompts.reads("enable_thinking"):
            return {}
        return {"enable_thinking": self.thinking.type != "disabled"}


class MessagesRequest(CountRequest):
    """A request for the next message of a conversation."""

    max_tokens: int = Field(ge=1, lt=2**31)
    stop_sequences: Annotated[list[Stop], Field(max_length=64)] | None = None
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**63)
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    async def prepare(self, service: Service) -> PreparedChat:
        """Look at the request, and make its prompt. Raises: ApiError or SalaError for what is wrong with it."""
        service.require_model(self.model)
        schema = self._json_schema
        if self.goes_on and (schema is not None or self._forced_tool is not None):
            raise invalid(
                "messages",
                "the last message is the assistant's, and output_config or tool_choice gives the answer a form: end "
                "with a user's message",
            )
        choice = self.tool_choice
        turn = ChatTurn(
            messages=template_messages(self.system, self.messages),
            goes_on=self.goes_on,
            tools=self.offered_tools,
            forced_tool=self._forced_tool,
            parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
            variables=self.variables(service),
            json_schema=schema,
            sampling=SamplingParameters(
                temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=self.stop_sequences
            ),
            max_new_tokens=self.max_tokens,
        )
        return await prepare(service, turn)

    @property
    def _forced_tool(self) -> str | None:
        choice = self.tool_choice
        if choice is None:
            return None
        if (choice.type == "tool") != (choice.name is not None):
            raise invalid("tool_choice", "tool_choice has a name if its type is `tool`, and only then")
        return ANY_TOOL if choice.type == "any" else choice.name

    @property
    def _json_schema(self) -> Mapping[str, Any] | None:
        if self.output_config is None or self.output_config.format is None:
            return None
        return self.output_config.format.json_schema
