"""Tokenizers: text to token ids and back, also piece by piece, from the text/ folder of a bundle."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ..checkpoint.added_tokens import read_tokenizer
from ..checkpoint.folder import ACCESSORY_FILES, CHAT_TEMPLATE_FOLDER
from ..checkpoint.library_tokenizer import LibraryTokenizer, hidden_panics
from ..checkpoint.tokenizer_files import TOKENIZER_CONFIG_FILE, TextFields
from ..errors import BundleError, SessionError
from ..files import Directory, TextFile
from ..specs import TOKENIZER_FILE
from .chat import ChatTemplate, chat_of
from .prompt import utf8
from .text_cuts import CutRule, cut_rule
from .text_fields import GENERATION_CONFIG_FILE, chat_templates, stop_token_ids

_BLOCK_CHARACTERS = 4096
"""A stream is tokenised in blocks of at least this size, so that many small pieces cost no more than few large ones."""
_PROBED_TOKENS = 300
"""More than the bytes with which a vocabulary may begin."""
_PROBE_TEXTS = ("a", "  The fox's\n\t12,5 %", "\u5f53\u7136 \u20ac e\u0301 \U0001f642\u200d \x00")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """The tokenizer of a checkpoint. It is immutable, and several threads may use it."""

    def __init__(
        self,
        tokenizer: LibraryTokenizer,
        *,
        rule: CutRule | None,
        chat: ChatTemplate | None = None,
        stop_token_ids: Sequence[int] = (),
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._rule = rule
        self.chat = chat
        """None if the checkpoint has no chat template."""
        self.stop_token_ids = tuple(stop_token_ids)
        """Tokens that end a text, as generation_config.json and the special token `eos_token` name them."""
        self.special_tokens = dict(special_tokens or {})
        """Texts of special tokens by the names of their fields, such as `bos_token`."""
        self._special = tokenizer.skipped_ids()
        self.around_texts = _around_texts(tokenizer)
        """The tokens that `add_special_tokens` puts before and behind a text."""

    @classmethod
    def from_files(cls, files: Mapping[str, TextFile]) -> Tokenizer:
        """Make a tokenizer of tokenizer.json, and of the tokens, chat template and stop tokens beside it, if any.

        A chat template compiles at its first use.

        Args: files: by name, `tokenizer.json` and, where they exist, the others in `ACCESSORY_FILES` and
        `additional_chat_templates/NAME.jinja`.
        Raises: BundleError naming the file that is missing or malformed.
        """
        config = TextFields(files.get(TOKENIZER_CONFIG_FILE), TOKENIZER_CONFIG_FILE)
        generation = TextFields(files.get(GENERATION_CONFIG_FILE), GENERATION_CONFIG_FILE)
        templates = chat_templates(config, files)
        try:
            with hidden_panics():
                library, special = read_tokenizer(files)
                if _flag(config, "split_special_tokens"):
                    library = library.literal()
                chat = chat_of(templates, special)
                tokenizer = cls(
                    library,
                    rule=cut_rule(library.spec()),
                    chat=chat,
                    stop_token_ids=stop_token_ids(generation, special, library),
                    special_tokens=special,
                )
                tokenizer._try_out()
        except SessionError as error:
            raise BundleError(str(error)) from None
        return tokenizer

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read the files that `from_files` names from a directory.

        Raises: BundleError naming the file that is missing, malformed or no regular file.
        """
        opened = Directory(directory, error=BundleError)
        names = (name for name in ACCESSORY_FILES if name == TOKENIZER_FILE or opened.has(name))
        named = (f"{CHAT_TEMPLATE_FOLDER}/{name}" for name in opened.names(CHAT_TEMPLATE_FOLDER))
        return cls.from_files({name: TextFile.read(opened.open(name)) for name in [*names, *named]})

    def _try_out(self) -> None:
        """Raises: SessionError if the library fails at a text or at the tokens of one."""
        for text in _PROBE_TEXTS:
            encoder, decoder = self.stream_encoder(), self.stream_decoder()
            for token_id in [*encoder.push(text), *encoder.finish(), *self.encode(text)]:
                decoder.push(token_id)
            decoder.finish()
        self.decode(range(_PROBED_TOKENS))

    @property
    def streams(self) -> bool:
        """True if `stream_encoder` gives ids before the text ends. `text_cuts` says which tokenizers can."""
        return self._rule is not None

    def encode(self, text: str, *, add_special_tokens: bool = True, literal: bool = False) -> list[int]:
        """Encode a text as token ids. An empty text gives none at all, not even those that begin a text.

        Args: add_special_tokens: begin (and end) the text as the tokenizer is set up to, for example with `<s>`. Set it
        to False for text that continues a context, and for rendered chats, which spell such tokens themselves.
        literal: special tokens that the text spells, such as `<|im_end|>`, are ordinary text. Added tokens that are not
        special stay tokens. It is `split_special_tokens` of transformers.
        """
        tokenizer = self._literal if literal else self._tokenizer
        return tokenizer.encode(_checked(text), add_special_tokens=add_special_tokens).ids if text else []

    @cached_property
    def _literal(self) -> LibraryTokenizer:
        return self._tokenizer.literal()

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """Where a text spells special tokens, with the white space that they take, as indices of its characters."""
        # A normalizer may make such a token of other text.
        tokens = [token for token in self._tokenizer.added_tokens.values() if token.special]
        if not any(token.normalized or token.content in text for token in tokens):
            return []
        return _special_spans(self._tokenizer, self._literal, _checked(text))

    def stream_encoder(self, *, add_special_tokens: bool = True) -> StreamEncoder:
        """Create an encoder for one text that arrives in pieces."""
        around = self.around_texts if add_special_tokens else ([], [])
        return StreamEncoder(self._tokenizer, lambda: self._literal, self._rule, *around)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode token ids as text, without special tokens."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def stream_decoder(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Create a decoder for one text whose ids arrive one by one. Special tokens have no text, or are spelled."""
        return StreamDecoder(self._tokenizer, self._special if skip_special_tokens else ())

    def token(self, token_id: int) -> str | None:
        """The spelling of one token in the vocabulary. None if there is no such token."""
        return self._tokenizer.token(token_id)


class StreamEncoder:
    """Encodes a text that arrives in pieces. Over all calls you get exactly the ids of the whole text.

    Text is given to the tokenizer up to the last point where `text_cuts` proves that nothing can join across it. The
    rest waits. If `text_cuts` has no rule for the tokenizer, all text waits for `finish`.

    A literal piece is text of a stranger, for example between the markers of a chat template: special tokens that it
    spells are ordinary text. It joins the other pieces as any text does. A special token counts only where pieces that
    are not literal spell it whole, and takes no white space out of literal text. Text that follows a literal piece and
    is not literal waits for the next literal piece or the end.
    """

    def __init__(
        self,
        tokenizer: LibraryTokenizer,
        literal: Callable[[], LibraryTokenizer],
        rule: CutRule | None,
        before: Sequence[int],
        after: Sequence[int],
    ) -> None:
        """Args: literal: gives the `literal` copy of the tokenizer, when there is literal text."""
        self._plain, self._literal = tokenizer, literal
        self._tokenizer = tokenizer
        """For the waiting text: the literal one from the first literal piece on."""
        self._rule = rule
        self._before, self._after = list(before), list(after)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._bytes = 0
        self._arrived: list[str] = []
        self._arrived_characters = 0
        self._is_literal = False
        self._plain_from = 0
        """Where in `_waiting` the pieces begin that are not literal, if they come last."""
        self._is_empty = True
        self._waiting = ""
        """Begins at a cut. Until the first literal piece it holds no other."""
        self._context = ""
        """The character before `_waiting`, or the separator for a special token; empty at the start."""

    def push(self, piece: str | bytes, *, literal: bool = False) -> list[int]:
        """Take a piece and return the ids that no later piece can change. Bytes are UTF-8 and may be cut anywhere.

        Args: literal: special tokens in the piece are ordinary text. A character lies in pieces of one kind.
        Raises: SessionError with the offset of the first byte that is not UTF-8, counted over all bytes pushed.
        """
        ids = self._turn() if literal != self._is_literal else []
        if isinstance(piece, str):
            self._arrive(self._decoded(b"", final=True))
            self._arrive(_checked(piece))
        else:
            self._arrive(self._decoded(piece, final=False))
        may_be_special = self._tokenizer is not self._plain and not literal
        if may_be_special or self._arrived_characters < _BLOCK_CHARACTERS:
            return ids
        return ids + self._up_to_cut()

    def settle(self) -> list[int]:
        """Return the ids that no later piece can change, of text that waits because it is little."""
        may_be_special = self._tokenizer is not self._plain and not self._is_literal
        return [] if may_be_special else self._up_to_cut()

    def _up_to_cut(self) -> list[int]:
        """The ids of the waiting text up to its last cut, of which there may be none."""
        if self._rule is None:
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
        ids = [] if self._is_literal or self._tokenizer is self._plain else self._up_to_special()
        ids += self._encode(len(self._waiting))
        return ids if self._is_empty else ids + self._after

    def _turn(self) -> list[int]:
        """Begin or end literal text."""
        self._arrive(self._decoded(b"", final=True))
        self._join()
        self._is_literal = not self._is_literal
        if not self._is_literal:
            self._plain_from = len(self._waiting)
            return []
        ids = self._up_to_special()
        self._tokenizer = self._literal()
        return ids

    def _up_to_special(self) -> list[int]:
        """Ids up to the last special token in the waiting text, and none if there is no such token."""
        text = self._waiting[self._plain_from :]
        spans = _special_spans(self._plain, self._literal(), text)
        if not spans:
            return []
        start, end = spans[0][0], spans[-1][1]
        ids = self._encode(self._plain_from + start) + self._begin() + self._ids(self._plain, text[start:end])
        self._context, self._waiting = self._literal().separator, text[end:]
        return ids

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

    def _begin(self) -> list[int]:
        """What comes before the first text, once."""
        self._is_empty = False
        before, self._before = self._before, []
        return before

    def _encode(self, cut: int) -> list[int]:
        """Ids of the waiting text before `cut`, whose last character stays to be the context of the next."""
        if not cut:
            return []
        known = len(self._ids(self._tokenizer, self._context))
        ids = self._ids(self._tokenizer, self._context + self._waiting[:cut])[known:]
        self._context, self._waiting = self._waiting[cut - 1], self._waiting[cut:]
        return self._begin() + ids

    @staticmethod
    def _ids(tokenizer: LibraryTokenizer, text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids


class StreamDecoder:
    """Decodes ids that arrive one by one into pieces of whole characters. Those in `special` have no text.

    A piece is the text of all ids so far less the text given out. Only the last few ids are decoded again: those of the
    last piece, because decoders treat the first word of a text differently, and those that have no piece yet.
    """

    def __init__(self, tokenizer: LibraryTokenizer, special: Iterable[int]) -> None:
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


def _special_spans(tokenizer: LibraryTokenizer, literal: LibraryTokenizer, text: str) -> list[tuple[int, int]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    found = zip(encoding.ids, encoding.offsets, strict=True)
    spans = [span for token_id, span in found if tokenizer.is_special(token_id)]

    def ids(of: LibraryTokenizer, span: tuple[int, int]) -> list[int]:
        return of.encode(text[slice(*span)], add_special_tokens=False).ids

    # The special token for what is unknown comes without being spelled.
    return [span for span in spans if ids(tokenizer, span) != ids(literal, span)]


def _flag(config: TextFields, name: str) -> bool:
    value = config.fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise config.wrong(name, "true or false")
    return bool(value)


def _checked(text: str) -> str:
    utf8(text)
    return text


def _around_texts(tokenizer: LibraryTokenizer) -> tuple[list[int], list[int]]:
    """What surrounds every text, read off a text that has a token of its own."""
    own = (tokenizer.decode([token_id], skip_special_tokens=True) for token_id in range(_PROBED_TOKENS))
    for text in itertools.chain(["a"], own):
        probe = tokenizer.encode(text, add_special_tokens=True)
        mask = probe.special_tokens_mask
        if 0 not in mask:
            continue
        before, after = probe.ids[: mask.index(0)], probe.ids[len(mask) - mask[::-1].index(0) :]
        if before + tokenizer.encode(text, add_special_tokens=False).ids + after == probe.ids:
            return before, after
    raise SessionError(f"{tokenizer.origin}: the tokenizer finds no token in any text, or puts special ones inside")
