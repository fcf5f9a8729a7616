"""Golden vectors of the published model (tests/golden/README.md), loaded by tensor name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from safetensors.torch import load_file
from torch import Tensor

GOLDEN_DIRECTORY = Path(__file__).parent.parent / "golden" / "mini"
GOLDEN_CHECKPOINT = GOLDEN_DIRECTORY / "ckpt"

CASES = ("golden", "golden_cross")
"""`golden`: prompt of 1501 tokens, sparse; `golden_cross`: prompt of 1000 that turns sparse while decoding."""


@functools.cache
def golden(case: str) -> Mapping[str, Tensor]:
    """All tensors of a case; shared between tests, so never written to."""
    return MappingProxyType(load_file(GOLDEN_DIRECTORY / f"{case}.safetensors"))
