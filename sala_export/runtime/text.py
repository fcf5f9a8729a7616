"""Tokenizers: text to token ids and back, also piece by piece, from the text/ folder of a bundle."""

from __future__ import annotations

import codecs
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ..bundle.reader import Bundle
from ..errors import BundleError, SessionError
from ..files import TextFile
from ..specs import TOKENIZER_FILE
from .chat import ChatTemplate
from .text_cuts import CutRule, cut_rule

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

_BLOCK_CHARACTERS = 4096
"""A stream is tokenised in blocks of at least this size, so that many small pieces cost no more than few large ones."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """The tokenizer of a checkpoint. It is immutable, and several threads may use it."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        rule: CutRule | None,
        chat: ChatTemplate | None = None,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._rule = rule
        self.chat = chat
        """None if the checkpoint has no chat template."""
        self.stop_token_ids = tuple(stop_token_ids)
        """Tokens that end a text, as generation_config.json and tokenizer_config.json name them."""
        self._special = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        # What surrounds every text, read off a text whose own token is not special.
        probe = tokenizer.encode("a")
        mask = probe.special_tokens_mask
        self._before = probe.ids[: mask.index(0)]
        self._after = probe.ids[len(mask) - mask[::-1].index(0) :]

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read tokenizer.json, and the chat template and stop tokens beside it if there are any.

        Raises: BundleError naming the file that is missing or malformed.
        """
        path = directory / TOKENIZER_FILE
        spec = _read_json(path)
        if spec is None:
            raise BundleError(f"{path} does not exist: copy the bundle again")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        # The library raises plain Exception for whatever it finds wrong with a file.
        except Exception as error:
            raise BundleError(f"{path} is no tokenizer that this version of `tokenizers` reads: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_json(directory / TOKENIZER_CONFIG_FILE) or {}
        generation = _read_json(directory / GENERATION_CONFIG_FILE) or {}
        return cls(
            tokenizer,
            rule=cut_rule(spec),
            chat=ChatTemplate.from_directory(directory, config),
            stop_token_ids=_stop_token_ids(tokenizer, config, generation),
        )

    @classmethod
    def from_files(cls, files: Mapping[str, TextFile]) -> Tokenizer:
        """Make a tokenizer of files by name."""
        with tempfile.TemporaryDirectory() as folder:
            for name, file in files.items():
                (Path(folder) / name).write_bytes(file.content)
            return cls.from_directory(Path(folder))

    @classmethod
    def from_bundle(cls, bundle: Path) -> Tokenizer | None:
        """Read the tokenizer of a bundle. None if the bundle was built from a checkpoint without one.

        Raises: BundleError if the bundle is damaged.
        """
        files = Bundle.open(bundle).text_files()
        return cls.from_files(files) if files else None

    @property
    def streams(self) -> bool:
        """True if `stream_encoder` gives ids before the text ends. `text_cuts` says which tokenizers can."""
        return self._rule is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode a text as token ids. An empty text gives none at all, not even those that begin a text.

        Args: add_special_tokens: begin (and end) the text as the tokenizer is set up to, for example with `<s>`. Set it
        to False for text that continues a context, and for rendered chats, which spell such tokens themselves.
        """
        return self._tokenizer.encode(_checked(text), add_special_tokens=add_special_tokens).ids if text else []

    def stream_encoder(self, *, add_special_tokens: bool = True) -> StreamEncoder:
        """Create an encoder for one text that arrives in pieces."""
        before, after = (self._before, self._after) if add_special_tokens else ([], [])
        return StreamEncoder(self._tokenizer, self._rule, before, after)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode token ids as text, without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def stream_decoder(self) -> StreamDecoder:
        """Create a decoder for one text whose ids arrive one by one."""
        return StreamDecoder(self._tokenizer, self._special)

    def token(self, token_id: int) -> str | None:
        """The spelling of one token in the vocabulary. None if there is no such token."""
        return self._tokenizer.id_to_token(token_id)


class StreamEncoder:
    """Encodes a text that arrives in pieces. Over all calls you get exactly the ids of the whole text.

    Text is given to the tokenizer up to the last point where `text_cuts` proves that nothing can join across it. The
    rest waits. If `text_cuts` has no rule for the tokenizer, all text waits for `finish`.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, rule: CutRule | None, before: Sequence[int], after: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._rule = rule
        self._before, self._after = list(before), list(after)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._bytes = 0
        self._arrived: list[str] = []
        self._arrived_characters = 0
        self._waiting = ""
        """Begins at a cut; holds no other."""
        self._context = ""
        """The character before `_waiting`; empty at the start."""

    def push(self, piece: str | bytes) -> list[int]:
        """Take a piece and return the ids that no later piece can change. Bytes are UTF-8 and may be cut anywhere.

        Raises: SessionError with the offset of the first byte that is not UTF-8, counted over all bytes pushed.
        """
        if isinstance(piece, str):
            self._arrive(self._decoded(b"", final=True))
            self._arrive(_checked(piece))
        else:
            self._arrive(self._decoded(piece, final=False))
        if self._rule is None or self._arrived_characters < _BLOCK_CHARACTERS:
            return []
        checked = len(self._waiting)
        self._join()
        for cut in range(len(self._waiting) - 1, max(checked, 1) - 1, -1):
            if self._rule.allows(self._waiting[cut - 1], self._waiting[cut]):
                return self._encode(cut)
        return []

    def finish(self) -> list[int]:
        """End the text and return the remaining ids. The encoder is then used up.

        Raises: SessionError if the text ends within a character.
        """
        self._arrive(self._decoded(b"", final=True))
        self._join()
        if not self._waiting:
            return []
        return self._encode(len(self._waiting)) + self._after

    def _decoded(self, data: bytes, *, final: bool) -> str:
        held = len(self._utf8.getstate()[0])
        start = self._bytes - held
        self._bytes += len(data)
        try:
            return self._utf8.decode(data, final)
        except UnicodeDecodeError as error:
            raise SessionError(
                f"the prompt is not UTF-8 at byte {start + error.start}, counted from 0 ({error.reason}): convert it "
                "first, with iconv for example"
            ) from None

    def _arrive(self, text: str) -> None:
        if text:
            self._arrived.append(text)
            self._arrived_characters += len(text)

    def _join(self) -> None:
        self._waiting += "".join(self._arrived)
        self._arrived.clear()
        self._arrived_characters = 0

    def _encode(self, cut: int) -> list[int]:
        """Ids of the waiting text before `cut`, which stays to be the context of the next."""
        known = len(self._ids(self._context))
        ids = self._before + self._ids(self._context + self._waiting[:cut])[known:]
        self._before = []
        self._context, self._waiting = self._waiting[cut - 1], self._waiting[cut:]
        return ids

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class StreamDecoder:
    """Decodes ids that arrive one by one into pieces of whole characters. Special tokens have no text.

    A piece is the text of all ids so far less the text given out. Only the last few ids are decoded again: those of the
    last piece, because decoders treat the first word of a text differently, and those that have no piece yet.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(special)
        self._given: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Take an id and return the text that no later id can change. Empty while the last character is not whole."""
        if token_id in self._special:
            return ""
        self._held.append(token_id)
        text = self._new_text()
        # What ends in a replacement character may be the beginning of a real one.
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._given, self._held = self._held, []
        return text

    def finish(self) -> str:
        """End the ids and return the remaining text. Bytes that are no valid text become replacement characters."""
        text = self._new_text()
        self._given, self._held = self._held, []
        return text

    def _new_text(self) -> str:
        before, after = self._decode(self._given), self._decode(self._given + self._held)
        # Byte tokens that belong to no character spoil all that they touch.
        return after.removeprefix(before) if after.startswith(before) else self._decode(self._held)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SessionError(
            f"the prompt has half a surrogate pair at character {error.start}: it is no Unicode text"
        ) from None
    return text


def _stop_token_ids(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], generation: dict[str, Any]) -> list[int]:
    named = generation.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    spelling = config.get("eos_token")
    content = spelling.get("content") if isinstance(spelling, dict) else spelling
    ids.append(tokenizer.token_to_id(content) if isinstance(content, str) else None)
    return list(dict.fromkeys(token_id for token_id in ids if isinstance(token_id, int)))


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no file."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BundleError(f"{path} holds {type(fields).__name__}, expected a JSON object")
    return fields
