"""What the JSON files of a tokenizer say, checked field by field: everybody writes them, and no type is certain."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.library_tokenizer import LibraryTokenizer
from ..checkpoint.tokenizer_files import TextFields
from ..errors import BundleError
from ..files import TextFile

GENERATION_CONFIG_FILE = "generation_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

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


def chat_template(config: TextFields, file: TextFile | None) -> tuple[str, str] | None:
    """The source of the chat template, and the name of its file: chat_template.jinja, or else tokenizer_config.json.

    None if there is none. Raises: BundleError naming the file that is no UTF-8 text, or the field of the wrong type.
    """
    if file is not None:
        return _text(file), str(file.path)
    field = config.fields.get("chat_template")
    if isinstance(field, list):
        # Several templates come as a list with names.
        field = {_entry(config, index, "name"): _entry(config, index, "template") for index in range(len(field))}.get(
            "default"
        )
    if field is None:
        return None
    if not isinstance(field, str):
        raise config.wrong("chat_template", "text, or a list of templates with names")
    return field, config.where


def _entry(config: TextFields, index: int, key: str) -> str:
    entry = config.fields["chat_template"][index]
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise config.wrong(f"chat_template[{index}].{key}", "text")
    return value


def _text(file: TextFile) -> str:
    try:
        text = file.content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file.path} is not UTF-8 at byte {error.start}, counted from 0: convert it first") from None
    if text.startswith(_BYTE_ORDER_MARK):
        # It would stand in front of every prompt.
        raise BundleError(f"{file.path} begins with a byte order mark: save it as UTF-8 without one")
    return text
