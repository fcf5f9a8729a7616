"""The weights of a bundle, as a graph or the engine takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..bundle.manifest import WeightInput, WeightLayout, WeightPart
from ..bundle.reader import Bundle
from ..checkpoint.tensor_location import TensorLocation
from ..checkpoint.torch_tensor import as_tensor
from ..errors import UnsupportedError
from ..numerics.block_scales import scale_words


class BundleWeights:
    """Weight inputs of a graph or the engine, made of the bundle's tensors, whose hashes are compared."""

    def __init__(self, bundle: Bundle, inputs: Sequence[WeightInput]) -> None:
        """Args: `inputs`: `graph.cpu.weights` or `engine.weights` of the manifest.

        Raises: UnsupportedError if the bundle was built without its weights."""
        if not bundle.manifest.weights.included:
            raise UnsupportedError(f"{bundle.directory} was built with --no-weights: build it with its weights")
        self.inputs = {weight.spec.name: weight for weight in inputs}
        """Weights by the names that the graph gives them."""
        self._bundle = bundle
        self._tensors = bundle.manifest.weights.tensors

    def tensor(self, name: str) -> Tensor:
        """A weight input in the type and shape that the graph takes."""
        weight = self.inputs[name]
        if weight.layout is WeightLayout.WORD_COLUMNS:
            return scale_words(torch.cat([self._stored(part.tensor) for part in weight.parts]))
        dtype = getattr(torch, weight.spec.dtype.value)
        shape = [int(extent) for extent in weight.spec.shape]
        values = [self._values(part).to(dtype) for part in weight.parts]
        # The one number of a scale is told by every tensor of a pack.
        return values[0].view(shape) if shape == [1] else torch.cat([each.view(-1) for each in values]).view(shape)

    def _values(self, part: WeightPart) -> Tensor:
        """What a part stands for: a tensor as it is stored, or scales of rows."""
        stored = self._stored(part.tensor)
        if part.rows is None:
            return stored
        rows = stored.to(torch.float32).view(-1).expand(part.rows)
        return rows * (1.0 if part.factor is None else self._stored(part.factor).to(torch.float32).view(-1))

    def _stored(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        where = TensorLocation(
            file=self._bundle.file(tensor.file),
            offset=tensor.offset,
            length=tensor.bytes,
            dtype=tensor.dtype,
            shape=tensor.shape,
        )
        block = where.raw()
        self._bundle.require_tensor(name, where.sha256)
        return as_tensor(where, block)
