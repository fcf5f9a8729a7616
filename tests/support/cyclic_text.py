"""A tokenizer for answers of any model, whose text is known before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

TEXT = "Grüße, 世界! One two <end> three\nfour END"


class CyclicTokenizer:
    """Token n of an answer is two bytes of the text, so that characters and words are cut; it reads no text."""

    class Decoder:
        def __init__(self) -> None:
            self.bytes = itertools.cycle(TEXT.encode())
            self.waiting = b""

        def push(self, token_id: int) -> str:
            self.waiting += bytes([next(self.bytes), next(self.bytes)])
            for kept in range(4):
                whole = self.waiting[: len(self.waiting) - kept]
                try:
                    text = whole.decode()
                except UnicodeDecodeError:
                    continue
                self.waiting = self.waiting[len(whole) :]
                return text
            raise AssertionError("a character has at most four bytes")

        def finish(self) -> str:
            return "\ufffd" if self.waiting else ""

    stop_token_ids = ()

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        raise NotImplementedError

    def stream_encoder(self, *, add_special_tokens: bool) -> Any:
        raise NotImplementedError

    def stream_decoder(self) -> Decoder:
        return self.Decoder()
