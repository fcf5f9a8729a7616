"""Chooses the tokens that both models run on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..calibration.samples import SampleRequest
from ..checkpoint.reader import Checkpoint
from ..errors import RequestError
from ..specs import TOKENIZER_FILE

_LEAST = 2
"""So that one token is predicted."""


def verification_tokens(checkpoint: Checkpoint, tokens: int, file: Path | None) -> Tensor:
    """Take `tokens` tokens, int64 [T], at random or from the lines of `file`, which may have fewer.

    Raises: RequestError or CheckpointError as `SampleRequest.read`, and if there are too many or too few.
    """
    config = checkpoint.config
    if not _LEAST <= tokens <= config.max_position_embeddings:
        raise RequestError(
            f"--tokens {tokens}: expected {_LEAST} to {config.max_position_embeddings}, what the model was made for"
        )
    if file is None:
        return torch.randint(0, config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    request = SampleRequest(file=file, samples=tokens, sequence_length=tokens)
    return torch.cat(request.read(config, checkpoint.text_files().get(TOKENIZER_FILE)))[:tokens]
