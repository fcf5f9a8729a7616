"""Describes the graph of an engine: the step's interface, weights, operators and constants. No data is read.

Weights are inputs of the graph beside those of the step. Some quantised forms keep constants inside: codes and scales
of int4, block scales of nvfp4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ShapeError
from ..model.signature import LOGITS
from ..ops.registry import INFLLMV2_ATTENTION
from ..specs import DType, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorNode:
    """A node of this project's operators."""

    name: str
    op_type: str
    attributes: Mapping[str, int | float]
    """Values of the attributes that the operator's contract lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineGraph:
    """A graph whose weights are inputs."""

    path: Path
    """The file that was described, for error messages."""
    inputs: tuple[TensorSpec, ...]
    """Inputs of the step: tokens, lengths, RoPE rows and caches."""
    weights: tuple[TensorSpec, ...]
    """All other inputs, of fixed shapes. Quantised weights hold codes, and float32 inputs are their scales."""
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorNode, ...]
    """The mixers, one in each layer."""
    product_operators: tuple[OperatorNode, ...] = ()
    """Block-scaled products, and what quantises their inputs. A planned graph does not name them."""
    parameters: int
    """Number of weight elements, inputs and constants, without scales."""
    quantized_parameters: int
    """Number of weight elements that are quantised."""
    constant_bytes: int
    """Bytes of the quantised weights and block scales inside the graph."""
    hidden_size: int
    widest_projection: int
    """Output features of the widest product that every token passes."""
    activation_dtype: DType

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return next(int(spec.shape[-1]) for spec in self.outputs if spec.name == LOGITS)

    @property
    def input_weights_bytes(self) -> int:
        """Bytes of the weights, and their scales, that are inputs."""
        return sum(spec.size_bytes({}) for spec in self.weights)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights and their scales on the GPU, inputs and constants."""
        return self.input_weights_bytes + self.constant_bytes

    def sparse_sizes(self) -> SparseSizes | None:
        """Sizes of the block-sparse operator, which all its nodes share. None if the graph has none.

        Raises: ShapeError if nodes disagree, because they share one symbolic capacity.
        """
        found: dict[SparseSizes, str] = {}
        for node in self.operators:
            if node.op_type == INFLLMV2_ATTENTION.onnx_type:
                sizes = {name: int(node.attributes[name]) for name in ("kernel_size", "kernel_stride", "block_size")}
                found.setdefault(SparseSizes(**sizes), node.name)
        if len(found) > 1:
            raise ShapeError(f"{self.path}: {' and '.join(found.values())} differ in kernel_size, stride or block_size")
        return next(iter(found), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseSizes:
    """The sizes, in tokens, that tie the capacities of the compressed caches to that of the key cache."""

    kernel_size: int
    kernel_stride: int
    block_size: int

    def k1_capacity(self, capacity: int) -> int:
        """Number of complete k1 windows among `capacity` keys, at least 1, because TensorRT takes no empty tensor."""
        return max(1, (capacity - self.kernel_size) // self.kernel_stride + 1)

    def k2_capacity(self, capacity: int) -> int:
        """Number of complete k2 windows, at least 1. Window and stride are four times those of k1."""
        return max(1, (capacity - 4 * self.kernel_size) // (4 * self.kernel_stride) + 1)
