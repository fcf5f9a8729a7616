"""The seam between the two TensorRTs: what differs is behind `Flavour`, what they share is in `builder.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..specs import ComputeCapability
from .recipe import Target
from .request import FlavourName
from .tensorrt import TensorRT
from .tensorrt_rtx import TensorRTForRTX


class Flavour(Protocol):
    """One TensorRT. The Python module that it loads is passed around as `trt: Any`: neither ships type information."""

    @property
    def name(self) -> FlavourName: ...

    @property
    def title(self) -> str:
        """Name for messages."""

    def check(self, target: Target) -> None:
        """Refuse a target that this flavour cannot build for on this machine.

        Raises: UnsupportedError.
        """

    def load(self) -> Any:
        """Import the Python module. Raises: UnsupportedError saying how to install it."""

    def set_targets(self, trt: Any, config: Any, capabilities: Sequence[ComputeCapability]) -> None:
        """Make a builder configuration build for compute capabilities. Raises: UnsupportedError."""

    def targets(self, config: Any) -> tuple[ComputeCapability, ...]:
        """What a builder configuration, after a build with it, says that it builds for."""


def select_flavour(name: FlavourName) -> Flavour:
    """The flavour of this name; `auto` is TensorRT for RTX, which needs no GPU."""
    return TensorRT() if name is FlavourName.TENSORRT else TensorRTForRTX()
