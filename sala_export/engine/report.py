"""The report of a build, which is kept with the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import BundleError
from ..files import TextFile
from ..specs import FlavourName, Precision, TensorSpec
from .build_log import FusedLayer, LayerTensor
from .graph import OperatorNode
from .memory import MemoryUsage
from .profiles import Profile

PLUGIN_LAYER = "custom_layer"
"""TensorRT's type of a layer that a plugin computes."""

PRODUCT_LAYERS = ("gemm", "runtime_fusion")
"""TensorRT's types of layers that are matrix products, alone or with their epilogue."""

_PRODUCT_NODES = ("MatMul", "Gemm", "BlockScaledLinear")
"""What the last part of a product's node begins with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """One built engine: its request, and what TensorRT reported."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    flavour: FlavourName
    tensorrt_version: str
    target: str
    """Name of the target that `--gpu` named."""
    gpus: tuple[str, ...]
    """Full names of the target's GPUs."""
    compute_capabilities: tuple[str, ...]
    """Compute capabilities that TensorRT stated after the build, e.g. `12.0`."""
    precision: Precision
    max_context: int
    prefill_chunk: int
    max_batch: int
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorSpec, ...]
    """Inputs of the step."""
    weights: tuple[TensorSpec, ...]
    """All other inputs, which are weights."""
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorNode, ...]
    """Nodes of this project's operators in the graph."""
    layers: tuple[FusedLayer, ...]
    activation_bytes: tuple[int, ...]
    """Scratch memory by profile index."""
    constant_bytes: int
    """Bytes of the constants inside the plan."""
    plugin_libraries: tuple[str, ...]
    """File names of the plugin libraries inside the plan."""
    memory: MemoryUsage
    """The account with TensorRT's own numbers for constants and activations."""
    parameters: int
    """Number of weight elements, inputs and constants."""
    quantized_parameters: int
    """Number of weight elements that are quantised."""
    plan_bytes: int
    build_seconds: float
    """Wall time of the whole build, parsing and writing included."""
    peak_host_bytes: int
    """Largest resident memory of the build process, mapped files included."""

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

        TensorRT also lists kernels before and behind a quantised product, for its scales, under the product's name.
        They count only if no layer has a product's own type, as in small models.
        """
        layers = [layer for layer in self.layers if layer.profile == profile]
        found: dict[str, FusedLayer] = {}
        for layer in sorted(layers, key=lambda layer: layer.type in PRODUCT_LAYERS):
            products = [node for node in layer.onnx_nodes if node.rpartition("/")[2].startswith(_PRODUCT_NODES)]
            found |= dict.fromkeys(products, layer)
        return found

    def weights_of(self, layer: FusedLayer) -> tuple[LayerTensor, ...]:
        """The weight matrices, or their block scales, that a layer reads: inputs first, then constants."""
        matrices = {spec.name for spec in self.weights if len(spec.shape) == 2}
        inputs = tuple(tensor for tensor in layer.inputs if tensor.name in matrices)
        return inputs + tuple(tensor for tensor in layer.constants if len(tensor.shape) > 1)

    def activations_of(self, layer: FusedLayer) -> tuple[LayerTensor, ...]:
        """Tensors that a layer reads besides weights."""
        weights = {spec.name for spec in self.weights}
        return tuple(tensor for tensor in layer.inputs if tensor.name not in weights)

    def layers_of(self, profile: int, type_: str) -> tuple[FusedLayer, ...]:
        """Fused layers of a profile that have this type."""
        return tuple(layer for layer in self.layers if (layer.profile, layer.type) == (profile, type_))

    def write(self, path: Path) -> None:
        """Write JSON that `read` reads back to an equal report. The file appears whole or not at all."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.write_bytes(_ADAPTER.dump_json(self, indent=2) + b"\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def read(cls, file: TextFile) -> EngineReport:
        """Read a report that `write` wrote. Raises: BundleError for anything but a report of this version."""
        try:
            return _ADAPTER.validate_json(file.content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{file.path}: {field}: {first['msg']} (build the bundle again)") from None


_ADAPTER = TypeAdapter(EngineReport)
