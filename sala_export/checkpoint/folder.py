"""An open checkpoint directory: its configuration, and the files beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..files import Directory, TextFile, read_json
from ..specs import TOKENIZER_FILE
from .config import SalaConfig
from .quantization import Quantization
from .quantization_config import read_quantization
from .tokenizer_files import ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
"""Marks a directory as a PEFT adapter. transformers applies one that lies beside whole weights."""
_MOST_CONFIG_BYTES = 1 << 20
"""A few kilobytes are usual. Of a list of layers, each gives a dozen weights to look for."""

ACCESSORY_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    "chat_template.jinja",
    "generation_config.json",
)
"""Files that a text runtime needs beside the weights. All are optional."""

CHAT_TEMPLATE_FOLDER = "additional_chat_templates"
"""Further chat templates, as NAME.jinja."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFolder:
    """A directory in Hugging Face layout, opened once. Whatever is read later is of this one directory."""

    directory: Directory
    config_fields: Mapping[str, Any]
    """The object in config.json."""
    config: SalaConfig

    @classmethod
    def open(cls, path: Path) -> CheckpointFolder:
        """Open a directory and read config.json.

        Raises: CheckpointError if there is no directory; ConfigError or UnsupportedError naming the file and the field.
        """
        directory = Directory(path, error=CheckpointError, advice="a checkpoint is a directory in Hugging Face layout")
        if directory.has(ADAPTER_FILE):
            raise CheckpointError(
                f"{path} holds a PEFT adapter ({ADAPTER_FILE}): merge it into its model (merge_and_unload of peft) and "
                "take what that saves"
            )
        advice = "--model takes a directory in Hugging Face layout or a hub id"
        file = directory.open(CONFIG_FILE, advice, ConfigError)
        fields = read_json(file, error=ConfigError, limit=_MOST_CONFIG_BYTES)
        if not isinstance(fields, dict):
            raise ConfigError(f"{file} holds {type(fields).__name__}, expected a JSON object")
        return cls(directory=directory, config_fields=fields, config=SalaConfig.from_fields(fields, file.path))

    @property
    def path(self) -> Path:
        """The path that was opened, for messages."""
        return self.directory.path

    def quantization(self) -> Quantization | None:
        """How the model is quantised. None if it is not.

        Raises: ConfigError for malformed fields, UnsupportedError for another method or scheme; both name the field.
        """
        return read_quantization(self.config_fields, self.directory, CONFIG_FILE)

    def text_files(self) -> dict[str, TextFile]:
        """Read those of `ACCESSORY_FILES` that exist and the chat templates with names, by their relative paths.

        Raises: CheckpointError naming the file.
        """
        there = [name for name in ACCESSORY_FILES if self.directory.has(name)]
        templates = (name for name in self.directory.names(CHAT_TEMPLATE_FOLDER) if name.endswith(".jinja"))
        there += [f"{CHAT_TEMPLATE_FOLDER}/{name}" for name in templates]
        return {name: TextFile.read(self.directory.open(name)) for name in there}
