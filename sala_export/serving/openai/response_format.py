"""`response_format`: the form that an answer must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..errors import invalid
from .parameters import Refusing


class TextFormat(Refusing):
    type: Literal["text"]


class JsonObject(Refusing):
    type: Literal["json_object"]


class SchemaWithName(Refusing):
    name: str = Field(default="answer", max_length=256)
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchema(Refusing):
    type: Literal["json_schema"]
    json_schema: SchemaWithName


ResponseFormat = TextFormat | JsonObject | JsonSchema


def schema_of(response_format: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The schema that an answer must fit: empty for any JSON object, None for any text.

    Raises: ApiError if it is missing.
    """
    if isinstance(response_format, JsonObject):
        return {}
    if not isinstance(response_format, JsonSchema):
        return None
    schema = response_format.json_schema.json_schema
    if not schema:
        raise invalid("response_format", "response_format.json_schema has no schema: give one, or use json_object")
    return schema
