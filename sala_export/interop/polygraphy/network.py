"""Loaders that give Polygraphy the TensorRT network of a bundle, and the configuration that its engine was built with.

Polygraphy's own `--plugins` only opens a library. TensorRT knows the operators once its registry has loaded it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polygraphy import config
from polygraphy.backend.base import BaseLoader
from polygraphy.backend.trt import network_from_onnx_path
from polygraphy.backend.trt.util import get_trt_logger

from ...bundle.reader import Bundle
from ...engine.builder import load_plugins, make_config
from ...engine.flavour import Flavour, select_flavour
from ...engine.profiles import stated_profiles
from ...engine.trtexec import require_whole_graph
from ...errors import BuildError, UnsupportedError
from ...files import absolute
from ...installation import plugin_library
from ...ops.registry import CONTRACTS
from ...specs import OPERATOR_DOMAIN, FlavourName
from .failures import told_by_polygraphy


class NetworkFromBundle(BaseLoader):
    """Functor that parses `engine.onnx` of a bundle, with the plugins of its operators registered."""

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle

    def call_impl(self) -> tuple[Any, Any, Any]:
        """Returns: builder, network and parser. Raises: PolygraphyException."""
        with told_by_polygraphy():
            opened = Bundle.open(Path(self.bundle))
            require_whole_graph(opened.manifest, opened.directory)
            _, trt = _tensorrt(opened)
            _register(trt)
        path = absolute(Path(self.bundle)) / opened.manifest.require_engine().graph
        builder, network, parser = network_from_onnx_path(str(path), strongly_typed=True)
        return builder, network, parser


class ConfigFromBundle(BaseLoader):
    """Functor that makes the builder configuration of a bundle's engine: targets, profiles, plugins in the plan."""

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle

    def call_impl(self, builder: Any, network: Any) -> Any:
        """Returns: the configuration. Raises: PolygraphyException."""
        with told_by_polygraphy():
            opened = Bundle.open(Path(self.bundle))
            flavour, trt = _tensorrt(opened)
            return make_config(
                flavour,
                trt,
                builder,
                compute_capabilities=opened.manifest.require_engine().compute_capabilities,
                profiles=stated_profiles(opened.manifest),
                plugin_library=plugin_library(),
            )


def _tensorrt(bundle: Bundle) -> tuple[Flavour, Any]:
    """The TensorRT of a bundle, and its Python module. Raises: UnsupportedError if Polygraphy uses the other one."""
    name = FlavourName(bundle.manifest.require_engine().tensorrt_flavour)
    flavour = select_flavour(name)
    if (name is FlavourName.RTX) != config.USE_TENSORRT_RTX:
        value = int(name is FlavourName.RTX)
        raise UnsupportedError(
            f"{bundle.directory} is for {flavour.title}, and Polygraphy uses the other one: set its variable "
            f"POLYGRAPHY_USE_TENSORRT_RTX={value}"
        )
    return flavour, flavour.load()


def _register(trt: Any) -> None:
    """Register the plugins, unless an earlier call in this process did. Raises: BuildError."""
    trt.Builder(get_trt_logger())  # gives the registry its logger
    known = {
        creator.name
        for creator in trt.get_plugin_registry().all_creators
        if creator.plugin_namespace == OPERATOR_DOMAIN
    }
    library = plugin_library()
    if not {contract.onnx_type for contract in CONTRACTS} <= known and not load_plugins(trt, library):
        raise BuildError(f"TensorRT cannot load {library}: see its log above")
