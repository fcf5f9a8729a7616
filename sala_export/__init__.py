"""Turns MiniCPM-SALA checkpoints into ONNX graphs and TensorRT engines, and runs them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .installation import VERSION

__version__ = VERSION
__all__ = ["SalaForCausalLM", "__version__", "load"]

if TYPE_CHECKING:
    from .loading import load
    from .model.sala import SalaForCausalLM


_LAZY = {"SalaForCausalLM": ".model.sala", "load": ".loading"}
"""Public names by module, loaded on first use: the command line and the kernel compiler must not wait for torch."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
