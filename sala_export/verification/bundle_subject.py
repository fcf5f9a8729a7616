"""Runs the CPU form of a bundle in ONNX Runtime, one layer at a time.

A graph of the bundle, the exact or the fast one, is cut into graphs of one layer each. A layer gets its weights when
its turn comes, so a model takes the memory of its largest layer. The bundle runs the same graph on a CPU. It rounds
quantised values as the engine does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from ..bundle.reader import Bundle
from ..checkpoint.keymap import EMBEDDING, FINAL_NORM, LM_HEAD
from ..installation import onnxruntime_operators
from ..model.layer_run import logits
from ..model.rope import rope_cos_sin
from ..model.signature import CONTEXT_LENGTH, INPUT_IDS, PAST_LENGTH, ROPE_COS_SIN, ROWS, cache_sizes
from ..onnx.layer_graph import MOST_GRAPH_BYTES, write_layer
from ..specs import CpuMath, Precision, computed_in, stream_name
from .bundle_weights import BundleWeights
from .subject import LayerFunction, LayerRows


class BundleSubject:
    """A bundle's own graph on the CPU. It shows only the residual stream of the activations."""

    def __init__(self, bundle: Bundle, layers: int | None = None, math: CpuMath = CpuMath.EXACT) -> None:
        """Args: `layers`: run only this many layers from the start. `math` says which graph runs.

        Raises: UnsupportedError if the bundle was built without its weights, RequestError for `layers`.
        """
        manifest = bundle.manifest
        self._weights = BundleWeights(bundle, manifest.graph.cpu.weights)
        config = manifest.model.config
        self.config = config if layers is None else config.truncated(layers)
        self.computes_in = Precision.FP32 if math is CpuMath.EXACT else manifest.precision
        computed = computed_in(manifest.precision, Precision.FP32)
        self.description = f"the {math} CPU form in ONNX Runtime {onnxruntime.__version__}, {computed}"
        self._bundle = bundle
        self._graph = manifest.graph.cpu.steps()[math]
        self._inv_freq = torch.tensor(manifest.model.inv_freq, dtype=torch.float32)
        self._head: Tensor | None = None

    def layer(self, layer: int, input_ids: Tensor) -> LayerFunction:
        """Cut the layer's graph out and load its weights. The graph of layer 0 takes the tokens, and embeds them."""
        tokens = len(input_ids)
        sizes = cache_sizes(self.config, tokens) | {ROWS: 1}
        feeds = {
            INPUT_IDS: input_ids[None],
            PAST_LENGTH: torch.zeros(1, dtype=torch.int32),
            CONTEXT_LENGTH: torch.full((1,), tokens, dtype=torch.int32),
            ROPE_COS_SIN: rope_cos_sin(torch.arange(tokens)[None], self._inv_freq),
        }
        feeds |= {
            spec.name: torch.zeros(spec.bound(sizes), dtype=getattr(torch, spec.dtype.value))
            for spec in self._graph.inputs
            if spec.name not in feeds
        }
        session = self._session(layer)
        weights = {
            value.name: _ort_value(self._weights.tensor(value.name))
            for value in session.get_inputs()
            if value.name in self._weights.inputs
        }

        def run(rows: Tensor) -> LayerRows:
            given = {**feeds, stream_name(layer): rows[None]}
            others = [value.name for value in session.get_inputs() if value.name not in weights]
            values = weights | {name: _ort_value(given[name]) for name in others}
            (stream,) = session.run_with_ort_values([stream_name(layer + 1)], values)
            after = torch.from_numpy(stream.numpy())[0]
            return LayerRows(rows=after, largest_activation=float(after.abs().max()))

        return run

    def logits(self, rows: Tensor) -> Tensor:
        if self._head is None:
            self._head = self._weights.tensor(EMBEDDING if self.config.tie_word_embeddings else LM_HEAD)
        return logits(self.config, self._weights.tensor(FINAL_NORM), self._head, rows)

    def _session(self, layer: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(onnxruntime_operators()))
        # Weights are inputs: nothing is gained by planning memory for two runs.
        options.enable_mem_pattern = False
        with tempfile.TemporaryDirectory(prefix="sala-verify-") as folder:
            path = Path(folder) / "layer.onnx"
            write_layer(self._bundle.read(self._graph.file, MOST_GRAPH_BYTES), layer, path)
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


_BITS = {
    torch.bfloat16: (torch.uint16, TensorProto.BFLOAT16),
    torch.float8_e4m3fn: (torch.uint8, TensorProto.FLOAT8E4M3FN),
}
"""Types that numpy has not: what it takes for their bits, and their number in ONNX."""


def _ort_value(tensor: Tensor) -> onnxruntime.OrtValue:
    if tensor.dtype in _BITS:
        carrier, onnx_type = _BITS[tensor.dtype]
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.view(carrier).numpy(), onnx_type)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
