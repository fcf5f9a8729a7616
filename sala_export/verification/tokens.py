"""Chooses the tokens that both models run on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..calibration.samples import SampleRequest, shipped_tokens
from ..checkpoint.reader import Checkpoint
from ..errors import RequestError
from ..specs import TOKENIZER_FILE

_LEAST = 2
"""So that one token is predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationTokens:
    """Tokens, and where they come from."""

    ids: Tensor
    """int64 [T]"""
    source: str

    @property
    def sha256(self) -> str:
        """Hash of the ids. Figures of two runs compare if it is the same."""
        return hashlib.sha256(self.ids.to(torch.int64).numpy().tobytes()).hexdigest()

    def __str__(self) -> str:
        return f"{len(self.ids):,} {self.source} ({self.sha256[:8]})"


def verification_tokens(checkpoint: Checkpoint, tokens: int, file: Path | None) -> VerificationTokens:
    """Take up to `tokens` tokens from the lines of `file`, or else from the text that ships with the package.

    A checkpoint without a tokenizer gets random tokens.

    Raises: RequestError or CheckpointError as `SampleRequest.read`, and if there are too many or too few.
    """
    config = checkpoint.config
    if not _LEAST <= tokens <= config.max_position_embeddings:
        raise RequestError(
            f"--tokens {tokens}: expected {_LEAST} to {config.max_position_embeddings}, what the model was made for"
        )
    texts = checkpoint.text_files()
    if file is not None:
        request = SampleRequest(file=file, samples=tokens, sequence_length=tokens)
        return VerificationTokens(ids=torch.cat(request.read(config, texts))[:tokens], source=f"tokens of {file}")
    if TOKENIZER_FILE not in texts:
        ids = torch.randint(0, config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
        return VerificationTokens(ids=ids, source="random tokens, as the checkpoint has no tokenizer")
    return VerificationTokens(
        ids=shipped_tokens(config, texts, tokens), source="tokens of the text that ships with sala-export"
    )
