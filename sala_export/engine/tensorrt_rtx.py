"""TensorRT for RTX, which builds for GPUs that need not be present."""

from __future__ import annotations

import ctypes
import importlib
import platform
from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedError
from ..installation import soname_shim
from ..specs import ComputeCapability, FlavourName
from .recipe import Target, names_of

SERVED = frozenset({"SM75", "SM80", "SM86", "SM89", "SM120", "SM121"})
"""Targets of the release that is installed with this package, for what does not load it."""


class TensorRTForRTX:
    """The flavour `rtx`. See `flavour.Flavour`."""

    name = FlavourName.RTX
    title = "TensorRT for RTX"

    def check(self, target: Target) -> None:
        """Refuse GPUs that it has no target for, or whose machines have other processors. Raises: UnsupportedError."""
        lacking = [recipe for recipe in target.gpus if recipe.compute_capability.sm not in SERVED]
        if lacking:
            raise UnsupportedError(
                f"{self.title} has no target for the {names_of(lacking, capabilities=True)}: build on the machine "
                "itself, with --flavour tensorrt (docs/gpus.md)"
            )
        here = platform.machine()
        elsewhere = [recipe for recipe in target.gpus if recipe.machine != here]
        if elsewhere:
            raise UnsupportedError(
                f"the {names_of(elsewhere)} is in a machine of {elsewhere[0].machine}, and an engine carries the "
                f"plugins as code of the machine that builds it, {here}: build there (docs/gpus.md)"
            )

    def load(self) -> Any:
        """Import `tensorrt_rtx`. Raises: UnsupportedError, or BuildError if this package is not installed in full."""
        try:
            module = importlib.import_module("tensorrt_rtx")
        except ImportError as error:
            raise UnsupportedError(
                f"TensorRT for RTX cannot be imported ({error}): pip install 'sala-export[build]'"
            ) from None
        # At its first plugin the ONNX parser opens libtensorrt_rtx.so, but the wheel ships libtensorrt_rtx.so.1 alone,
        # and the process aborts. Seen with 1.7.1.116; drop when the wheel ships the unversioned name.
        ctypes.CDLL(str(soname_shim()))
        return module

    def set_targets(self, trt: Any, config: Any, capabilities: Sequence[ComputeCapability]) -> None:
        """Ask for compute capabilities. Raises: UnsupportedError listing those that TensorRT knows."""
        targets = trt.ComputeCapability.__members__
        for capability in capabilities:
            if capability.sm not in targets:
                known = ", ".join(sorted(name for name in targets if name.startswith("SM")))
                raise UnsupportedError(
                    f"{self.title} {trt.__version__} has no target {capability.sm}, it has {known}: choose another "
                    "--gpu, or build with --flavour tensorrt on a machine with that GPU"
                )
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(targets[capability.sm], index)

    def targets(self, config: Any) -> tuple[ComputeCapability, ...]:
        """Return the targets of a builder configuration."""
        found = (config.get_compute_capability(index) for index in range(config.num_compute_capabilities))
        return tuple(ComputeCapability.from_sm(capability.name) for capability in found)
