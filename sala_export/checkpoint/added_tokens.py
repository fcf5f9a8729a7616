"""Tokens that a checkpoint names beside its tokenizer.json, added as transformers adds them.

For example, a fine-tune brings the tokenizer.json of its base model, and its chat markers in `added_tokens_decoder` of
tokenizer_config.json. Transformers 5 (`PreTrainedTokenizerFast.from_pretrained`) reads five places:

- `added_tokens` of tokenizer.json. The library makes them its own before all others.
- `added_tokens_decoder` of tokenizer_config.json. Where it is there, the next two are not read.
- `added_tokens.json`, an object of texts and ids that older versions wrote.
- `special_tokens_map.json`, whose fields replace those of tokenizer_config.json.
- The special tokens of tokenizer_config.json: `bos_token` and the other names, each further text whose name ends with
  `_token`, and `extra_special_tokens` (`additional_special_tokens` to older versions). The object
  `model_specific_special_tokens` is read where there are neither further texts nor an object in `extra_special_tokens`.

Tokens with ids are added first, in the order of their ids, then the special ones that are not among them. The library
gives a token that is in the vocabulary its id there, and any other the next free id. Of tokens with the same id, only
the last is added, and those of tokenizer.json come last. A warning says where a token has not the id that a file names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken

from ..errors import BundleError, printable
from ..files import TextFile
from ..specs import TOKENIZER_FILE
from .library_tokenizer import LibraryTokenizer
from .tokenizer_files import ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TextFields

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DECODER = "added_tokens_decoder"
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_SPECIFIC = "model_specific_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MOST_ID = 2**31 - 1

logger = logging.getLogger(__name__)

_WithIds = list[tuple[int, AddedToken]]


def read_tokenizer(files: Mapping[str, TextFile]) -> tuple[LibraryTokenizer, dict[str, str]]:
    """Make a tokenizer of tokenizer.json and of the tokens that the files beside it name.

    Args: files: by name.
    Returns: the tokenizer, and the texts of the special tokens by the names of their fields, such as `bos_token`.
    Raises: BundleError naming a file that is missing or malformed, and the field in it.
    """
    file = files.get(TOKENIZER_FILE)
    if file is None:
        raise BundleError(f"{TOKENIZER_FILE} is missing: copy the bundle again")
    own, with_ids, special = _named_tokens(files)
    tokenizer = LibraryTokenizer.from_json(file.content, str(file.path), _in_order(with_ids, own, special))
    _warn_of_other_ids(with_ids, tokenizer)
    return tokenizer, special.contents()


def special_tokens(files: Mapping[str, TextFile]) -> dict[str, str]:
    """The texts of the special tokens alone, as `read_tokenizer` returns them. None of the files need be there.

    Raises: BundleError naming a malformed file, and the field in it.
    """
    return _named_tokens(files)[2].contents()


def _named_tokens(files: Mapping[str, TextFile]) -> tuple[_WithIds, _WithIds, _SpecialTokens]:
    """The tokens of tokenizer.json, all that come with ids, and the special ones."""
    names = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
    own_file, config, special_map, added = (TextFields(files.get(name), name) for name in names)
    own = _tokens_of_tokenizer(own_file)
    special = _SpecialTokens.of_config(config)
    if config.fields.get(_DECODER) is not None:
        with_ids = _decoder_tokens(config)
    else:
        special.replace(special_map)
        with_ids = _texts_with_ids(added, special) + own
    # One with an id says more than the field of a name.
    by_text = {token.content: token for _, token in with_ids}
    special.standard = {name: by_text.get(token.content, token) for name, token in special.standard.items()}
    return own, with_ids, special


@dataclass(slots=True)
class _SpecialTokens:
    """What tokenizer_config.json and special_tokens_map.json name as special."""

    standard: dict[str, AddedToken] = field(default_factory=dict)
    """By the names in `_NAMES`, in their order."""
    typed: set[str] = field(default_factory=set)
    """Names whose tokens are objects in tokenizer_config.json: transformers reads those after added_tokens.json."""
    objects: dict[str, AddedToken] = field(default_factory=dict)
    """By names of the checkpoint's own, such as `image_token`."""
    texts: dict[str, AddedToken] = field(default_factory=dict)
    """The same, which come after them."""
    extra: list[AddedToken] | None = None
    """Without names. None if no file has the field."""
    old_extra: list[AddedToken] = field(default_factory=list)
    """In place of `extra` where that is None."""

    @classmethod
    def of_config(cls, config: TextFields) -> _SpecialTokens:
        found = cls(_standard(config), {name for name in _NAMES if isinstance(config.fields.get(name), dict)})
        for name, token in _others(config, needs_type=True):
            (found.texts if isinstance(config.fields[name], str) else found.objects)[name] = token
        found._read_extra(config)
        if not found.texts:
            found.texts = _by_name(config, _SPECIFIC)
        if _OLD_EXTRA in config.fields and not config.fields.get(_EXTRA):
            found.extra = _listed(config, _OLD_EXTRA)
        return found

    def replace(self, special_map: TextFields) -> None:
        """Take the fields of special_tokens_map.json in place of those of tokenizer_config.json; lists add up."""
        if special_map.fields.get(_SPECIFIC) is not None:
            raise special_map.wrong(_SPECIFIC, f"a field of this file, but of {TOKENIZER_CONFIG_FILE}")
        kept = {name: token for name, token in self.standard.items() if name not in special_map.fields}
        replaced = kept | _standard(special_map)
        self.standard = {name: replaced[name] for name in _NAMES if name in replaced}
        self.typed.difference_update(special_map.fields)
        self.objects.update(_others(special_map, needs_type=False))
        self._read_extra(special_map)
        self.old_extra = _listed(special_map, _OLD_EXTRA)

    def _read_extra(self, file: TextFields) -> None:
        if isinstance(file.fields.get(_EXTRA), dict):
            self.extra = None
            self.texts |= _by_name(file, _EXTRA)
        elif _EXTRA in file.fields:
            self.extra = [*(self.extra or ()), *_listed(file, _EXTRA)]

    @property
    def named(self) -> dict[str, AddedToken]:
        tokens = self.standard | self.objects | self.texts
        # An object may name one of `_NAMES`, too.
        return {name: tokens[name] for name in (*_NAMES, *tokens) if name in tokens}

    def contents(self) -> dict[str, str]:
        return {name: token.content for name, token in self.named.items()}

    @property
    def all(self) -> list[AddedToken]:
        return [*self.named.values(), *(self.old_extra if self.extra is None else self.extra)]


def _in_order(with_ids: _WithIds, own: _WithIds, special: _SpecialTokens) -> list[AddedToken]:
    """What to add, in the order that gives new tokens their ids."""
    by_id = dict(with_ids)
    tokens = [by_id[token_id] for token_id in sorted(by_id)]
    known = {token.content for token in (*tokens, *(token for _, token in own))}
    for token in special.all:
        if token.content not in known and token not in tokens:
            tokens.append(token)
    named = {token.content for token in special.named.values()}
    for token in tokens:
        token.special = token.special or token.content in named
    # The library skips for good what was special once, but does not write that down.
    once = {token.content for token in (*tokens, *(token for _, token in own)) if token.special}
    return [_made_special(token) if token.content in once and not token.special else token for token in tokens]


def _made_special(token: AddedToken) -> AddedToken:
    """The token as a special one, all else kept. What says nothing of `normalized` is so where it is not special."""
    flags = {name: getattr(token, name) for name in _FLAGS}
    return AddedToken(token.content, **flags | {"special": True})


def _warn_of_other_ids(with_ids: _WithIds, tokenizer: LibraryTokenizer) -> None:
    wrong = [(number, token.content) for number, token in with_ids if tokenizer.token_id(token.content) != number]
    # An empty text is no token.
    for number, content in [pair for pair in wrong if pair[1]][:1]:
        given = tokenizer.token_id(content)
        reason = "another token has that id, so it is no token here and its text is split"
        if given is not None:
            reason = f"the vocabulary and the order of the tokens give {given}"
        logger.warning(
            "%s: %d is named as the id of %s, but %s%s, as in transformers: check that all files of the tokenizer are "
            "of one model",
            tokenizer.origin,
            number,
            printable(repr(content)),
            reason,
            f", and {len(wrong) - 1} more have other ids or none" if len(wrong) > 1 else "",
        )


def _tokens_of_tokenizer(file: TextFields) -> _WithIds:
    value = file.fields.get("added_tokens")
    if value is None:
        return []
    if not isinstance(value, list):
        raise file.wrong("added_tokens", "a list of tokens")
    found = []
    for index, entry in enumerate(value):
        where = f"added_tokens[{index}]"
        token = _token(file, where, entry)
        found.append((_id(file, f"{where}.id", entry.get("id") if isinstance(entry, dict) else None), token))
    return found


def _decoder_tokens(config: TextFields) -> _WithIds:
    value = config.fields[_DECODER]
    if not isinstance(value, dict):
        raise config.wrong(_DECODER, "an object of tokens by their ids")
    found = []
    for key, entry in value.items():
        where = f"{_DECODER}.{printable(key)}"
        if not isinstance(entry, dict):
            raise config.wrong(where, "an object with a token's content")
        number = int(key) if key.isascii() and key.isdecimal() and len(key) < 12 else None
        found.append((_id(config, where, number), _token(config, where, {"special": False, **entry})))
    return found


def _texts_with_ids(file: TextFields, special: _SpecialTokens) -> _WithIds:
    marked = {token.content for name, token in special.standard.items() if name not in special.typed}
    marked |= {token.content for token in special.extra or ()}
    found = []
    for content, number in file.fields.items():
        flags = {"special": content in marked, "normalized": content not in marked}
        token = _token(file, printable(content), {"content": content, **flags})
        found.append((_id(file, printable(content), number), token))
    return found


def _standard(file: TextFields) -> dict[str, AddedToken]:
    return {name: _token(file, name, file.fields[name]) for name in _NAMES if file.fields.get(name) is not None}


def _others(file: TextFields, *, needs_type: bool) -> Iterator[tuple[str, AddedToken]]:
    """Fields such as `image_token`; others that end like them, `add_bos_token` for example, are no tokens."""
    for name, value in file.fields.items():
        is_object = isinstance(value, dict) and ("__type" in value or not needs_type)
        if name.endswith("_token") and name not in _NAMES and (is_object or isinstance(value, str)):
            yield name, _token(file, printable(name), value)


def _by_name(file: TextFields, where: str) -> dict[str, AddedToken]:
    value = file.fields.get(where)
    if value is not None and not isinstance(value, dict):
        raise file.wrong(where, "an object of tokens by their names")
    return {name: _token(file, f"{where}.{printable(name)}", token) for name, token in (value or {}).items()}


def _listed(file: TextFields, name: str) -> list[AddedToken]:
    value = file.fields.get(name)
    if value is not None and not isinstance(value, list):
        raise file.wrong(name, "a list of tokens")
    return [_token(file, f"{name}[{index}]", entry) for index, entry in enumerate(value or ())]


def _id(file: TextFields, where: str, value: object) -> int:
    # A bool is an int to Python.
    if type(value) is not int or not 0 <= value <= _MOST_ID:
        raise file.wrong(where, "a token id")
    return value


def _token(file: TextFields, where: str, value: object) -> AddedToken:
    """A token that is written as its text, or as an object. Only where that says so is it not special."""
    fields: dict[str, Any] = value if isinstance(value, dict) else {"content": value}
    content = fields.get("content")
    if not isinstance(content, str) or not _is_unicode(content):
        raise file.wrong(where, "a token's text, or an object with its content")
    flags = {name: fields[name] for name in _FLAGS if fields.get(name) is not None}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise file.wrong(f"{where}.{name}", "true or false")
    return AddedToken(content, **{"special": "__type" not in fields} | flags)


def _is_unicode(text: str) -> bool:
    """False with half a surrogate pair, which JSON can spell."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
