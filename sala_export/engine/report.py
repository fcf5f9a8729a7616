"""What came out of a build, to be kept with the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import BundleError
from ..specs import Precision, TensorSpec
from .build_log import FusedLayer
from .graph import OperatorNode
from .memory import DeviceMemory
from .profiles import Profile
from .request import FlavourName

PLUGIN_LAYER = "custom_layer"
"""TensorRT's type of a layer that a plugin computes."""

PRODUCT_LAYERS = ("gemm", "runtime_fusion")
"""TensorRT's types of layers that are matrix products, alone or with what follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """One built engine: what was asked, and what TensorRT reported."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    flavour: FlavourName
    tensorrt_version: str
    recipe: str
    """Name of the GPU recipe."""
    gpu: str
    compute_capability: str
    """As TensorRT stated it after the build, e.g. `12.0`."""
    precision: Precision
    max_context: int
    prefill_chunk: int
    max_batch: int
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorNode, ...]
    """Nodes of this project's operators in the graph."""
    layers: tuple[FusedLayer, ...]
    activation_bytes: tuple[int, ...]
    """Scratch memory by profile index."""
    plugin_libraries: tuple[str, ...]
    """File names of the plugin libraries inside the plan."""
    memory: DeviceMemory
    """The account with TensorRT's own numbers for weights and activations."""
    parameters: int
    """Weight elements of the graph."""
    quantized_parameters: int
    """Those of them that are quantised."""
    graph_weights_bytes: int
    graph_quantized_weights_bytes: int
    """Of the quantised weights and their scales."""
    plan_bytes: int
    build_seconds: float
    """Wall time of the whole build, parsing and writing included."""
    peak_host_bytes: int
    """Largest resident memory of the build process, mapped weight files included."""

    @property
    def plan_bytes_per_weight(self) -> float:
        """Near the size of a weight if each is stored once."""
        return self.plan_bytes / self.parameters

    def operator_layers(self, profile: int) -> dict[str, tuple[str, ...]]:
        """Nodes of this project's operators that plugins compute in a profile: names by operator, in graph order."""
        fused = {node for layer in self.layers_of(profile, PLUGIN_LAYER) for node in layer.onnx_nodes}
        names: dict[str, tuple[str, ...]] = {}
        for operator in self.operators:
            if operator.name in fused:
                names[operator.op_type] = (*names.get(operator.op_type, ()), operator.name)
        return names

    def product_layers(self, profile: int) -> dict[str, FusedLayer]:
        """The layer that computes each matrix product of a profile, by the name of its node in the graph.

        Kernels before and behind a quantised product, for its scales, are told under the product's name too: they are
        it only where no layer of a product's own type is, as in small models.
        """
        layers = [layer for layer in self.layers if layer.profile == profile]
        found: dict[str, FusedLayer] = {}
        for layer in sorted(layers, key=lambda layer: layer.type in PRODUCT_LAYERS):
            products = [node for node in layer.onnx_nodes if node.rpartition("/")[2].startswith(("MatMul", "Gemm"))]
            found |= dict.fromkeys(products, layer)
        return found

    def layers_of(self, profile: int, type_: str) -> tuple[FusedLayer, ...]:
        """Fused layers of a profile that have this type."""
        return tuple(layer for layer in self.layers if (layer.profile, layer.type) == (profile, type_))

    def to_json(self) -> str:
        """Indented JSON that `read` reads back to an equal report."""
        return _ADAPTER.dump_json(self, indent=2).decode("utf-8")

    @classmethod
    def read(cls, path: Path) -> EngineReport:
        """Read a file that holds `to_json`. Raises: BundleError for anything but a report of this version."""
        try:
            return _ADAPTER.validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path}: {field}: {first['msg']} (build the bundle again)") from None


_ADAPTER = TypeAdapter(EngineReport)
