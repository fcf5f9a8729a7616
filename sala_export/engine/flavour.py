"""The seam between the two TensorRTs. What differs is behind `Flavour`, what they share is in `builder.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..specs import ComputeCapability, FlavourName
from .recipe import Target
from .tensorrt import TensorRT
from .tensorrt_rtx import TensorRTForRTX


class Flavour(Protocol):
    """One TensorRT. Its Python module is passed around as `trt: Any`, because neither ships type information."""

    @property
    def name(self) -> FlavourName: ...

    @property
    def title(self) -> str:
        """Name of the flavour for messages."""

    def check(self, target: Target) -> None:
        """Refuse a target that this flavour cannot build for on this machine.

        Raises: UnsupportedError.
        """

    def load(self) -> Any:
        """Import the Python module. Raises: UnsupportedError saying how to install it."""

    def set_targets(self, trt: Any, config: Any, capabilities: Sequence[ComputeCapability]) -> None:
        """Make a builder configuration build for compute capabilities. Raises: UnsupportedError."""

    def targets(self, config: Any) -> tuple[ComputeCapability, ...]:
        """Compute capabilities that a builder configuration states after a build."""


def select_flavour(name: FlavourName) -> Flavour:
    """Return the flavour of this name. `auto` is TensorRT for RTX, which needs no GPU."""
    return TensorRT() if name is FlavourName.TENSORRT else TensorRTForRTX()
