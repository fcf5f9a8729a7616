"""What the JSON files of a tokenizer say, checked field by field: everybody writes them, and no type is certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint.folder import CHAT_TEMPLATE_FOLDER
from ..checkpoint.library_tokenizer import LibraryTokenizer
from ..checkpoint.tokenizer_files import TextFields
from ..errors import BundleError
from ..files import TextFile

GENERATION_CONFIG_FILE = "generation_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

_DEFAULT = "default"
_BYTE_ORDER_MARK = "\ufeff"


def stop_token_ids(generation: TextFields, special: Mapping[str, str], tokenizer: LibraryTokenizer) -> tuple[int, ...]:
    """Tokens that end a text: those of generation_config.json, and the special token `eos_token`.

    Args: special: as `read_tokenizer` gives them.
    An id that the tokenizer does not know may be one of the model's: vocabularies are padded.
    Raises: BundleError if generation_config.json names what is no token id.
    """
    named = generation.fields.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    for index, stop in enumerate(ids):
        field = f"eos_token_id[{index}]" if isinstance(named, list) else "eos_token_id"
        # A bool is an int to Python.
        if type(stop) is not int or not 0 <= stop < 1 << 31:
            raise generation.wrong(field, "a token id")
    spelled = tokenizer.token_id(special["eos_token"]) if "eos_token" in special else None
    return tuple(dict.fromkeys(ids if spelled is None else [*ids, spelled]))


@dataclass(frozen=True, slots=True)
class TemplateText:
    """One chat template, as it was read."""

    source: str
    origin: str
    """The file, for messages."""


def chat_templates(config: TextFields, files: Mapping[str, TextFile]) -> dict[str, TemplateText]:
    """The chat templates by name. A single one without a name is called `default`.

    They are chat_template.jinja and the files of additional_chat_templates/. Without either, they are the field
    `chat_template` of tokenizer_config.json: a text, a list of objects with `name` and `template`, or texts by name.
    Raises: BundleError naming the file that is no UTF-8 text, or the field of the wrong type.
    """
    found = {}
    for name, file in files.items():
        folder, _, last = name.rpartition("/")
        if name == CHAT_TEMPLATE_FILE:
            found[_DEFAULT] = TemplateText(_text(file), str(file.path))
        elif folder == CHAT_TEMPLATE_FOLDER and last.endswith(".jinja"):
            found[last.removesuffix(".jinja")] = TemplateText(_text(file), str(file.path))
    return found or {name: TemplateText(source, config.where) for name, source in _in_config(config).items()}


def _in_config(config: TextFields) -> dict[str, str]:
    field = config.fields.get("chat_template")
    if isinstance(field, list):
        entries = [(f"[{index}]", entry) for index, entry in enumerate(field)]
        return {_part(config, f"{at}.name", entry): _part(config, f"{at}.template", entry) for at, entry in entries}
    if isinstance(field, dict):
        return {name: _part(config, f".{name}", field) for name in field}
    if field is None:
        return {}
    if not isinstance(field, str):
        raise config.wrong("chat_template", "text, or a list of templates with names")
    return {_DEFAULT: field}


def _part(config: TextFields, path: str, holder: object) -> str:
    value = holder.get(path.partition(".")[2]) if isinstance(holder, dict) else None
    if not isinstance(value, str):
        raise config.wrong(f"chat_template{path}", "text")
    return value


def _text(file: TextFile) -> str:
    try:
        text = file.content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file.path} is not UTF-8 at byte {error.start}, counted from 0: convert it first") from None
    # A byte order mark would stand in front of every prompt.
    return text.removeprefix(_BYTE_ORDER_MARK)
