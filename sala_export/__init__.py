"""Turns MiniCPM-SALA checkpoints into ONNX graphs and TensorRT engines, and runs them."""

from __future__ import annotations

TYPE_CHECKING = False  # that of `typing`, whose import takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from .installation import VERSION
    from .loading import load
    from .model.sala import SalaForCausalLM
    from .runtime.state_store import StateStore

    __version__ = VERSION

__all__ = ["SalaForCausalLM", "StateStore", "__version__", "load"]

_LAZY = {
    "SalaForCausalLM": (".model.sala", "SalaForCausalLM"),
    "StateStore": (".runtime.state_store", "StateStore"),
    "__version__": (".installation", "VERSION"),
    "load": (".loading", "load"),
}
"""Public names by module, loaded on first use: the command line and the kernel compiler must not wait for torch."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from .extras import extras_named

    module, attribute = _LAZY[name]
    with extras_named():
        return getattr(importlib.import_module(module, __name__), attribute)
