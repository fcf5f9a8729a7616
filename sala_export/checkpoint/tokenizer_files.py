"""The JSON files of a tokenizer. Everybody writes them: no type of a field is certain, some begin with a BOM."""

from __future__ import annotations

import codecs
from typing import Any

from ..errors import BundleError
from ..files import TextFile, parse_json

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"


class TextFields:
    """The JSON object in a file. No file is an object without fields."""

    def __init__(self, file: TextFile | None, name: str) -> None:
        """Args: name: for messages, where there is no file. Raises: BundleError if the file holds no JSON object."""
        self.where = name if file is None else str(file.path)
        """For messages."""
        self.fields: dict[str, Any] = {}
        if file is not None:
            value = parse_json(file.content.removeprefix(codecs.BOM_UTF8), self.where, error=BundleError)
            if not isinstance(value, dict):
                raise BundleError(f"{self.where} holds {type(value).__name__}, expected a JSON object")
            self.fields = value

    def wrong(self, field: str, expected: str) -> BundleError:
        """The error of a field that is of the wrong type."""
        return BundleError(f"{self.where}: {field} is not {expected}: mend the file, or fetch it again")
