"""One step of the model as an ONNX graph, the walk over its layers; how weights and products are stated is a form's.

B batch, T tokens, R rows whose logits are wanted, H hidden size, I intermediate size, V vocabulary. Projections that
share an input are one product, because some TensorRT versions miscompile their own horizontal fusion of them at batch
1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import EMBEDDING, FINAL_NORM, LM_HEAD, MIXER_MODULES, layer_packs
from ..model.mixers import MIXERS, MixerKind
from ..model.signature import INPUT_IDS, LOGIT_ROWS, CacheEntry, signature
from ..model.stream_unit import stream_unit
from ..specs import OPERATOR_DOMAIN, DType, stream_name
from .graph_builder import FLAT_ROWS, IR_TYPES, GraphBuilder, Shape, shape_of

OPERATOR_VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_namespace": OPERATOR_DOMAIN, "plugin_version": str(OPERATOR_VERSION)}
"""String attributes of a `sala` node, by which TensorRT's parser finds its plugin."""


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm."""

    weight: str
    """Name in the checkpoint."""
    eps: float
    """Added to the mean of the squares."""


class Form(Protocol):
    """The way in which a graph states weights and products. Weights have their names in the checkpoint."""

    @property
    def graph(self) -> GraphBuilder:
        """The graph that gets the nodes."""

    @property
    def dtype(self) -> DType:
        """Type of activations."""

    @property
    def cache_dtype(self) -> DType:
        """Type of the caches, but of those that are always in fp32."""

    def embedding(self) -> ir.Value:
        """The table [V, H] that token ids are looked up in; its rows are then cast to `dtype`."""

    def norm(self, x: ir.Value, norm: Norm) -> ir.Value:
        """The RMSNorm of `x` [..., H], in `dtype`."""

    def operator_weight(self, name: str) -> ir.Value:
        """A norm that an operator takes: `dtype` [head_dim] or [width]."""

    def product(self, x: ir.Value, names: tuple[str, ...]) -> ir.Value:
        """`x @ concat(weights).T` [..., out] in `dtype`, sums in fp32, of `x` [B, T, in], or [R, in] before lm_head."""

    def normed_product(self, stream: ir.Value, norm: Norm, names: tuple[str, ...]) -> ir.Value:
        """The product of `norm(stream)` [B, T, out] in `dtype`."""

    def mlp(self, stream: ir.Value, norm: Norm, names: tuple[str, ...], down: str, scale: float) -> ir.Value:
        """`stream + scale * down(silu(gate n) * up n)` [B, T, H] of n = `norm(stream)`; `names` are gate and up."""

    def residual_product(self, stream: ir.Value, x: ir.Value, name: str, scale: float) -> ir.Value:
        """`stream + scale * (x @ weight.T)` [B, T, H]: the product and its scaled form rounded to `dtype`."""


def build_step(config: SalaConfig, form: Form) -> ir.Model:
    """The graph of one step: inputs and outputs are those of `signature(config, form.cache_dtype)`, in that order.

    The residual stream that enters a layer is named as `stream_name` says, and nothing else of the layers before it
    reaches the nodes of a layer: a graph can be cut there.
    """
    return _StepBuilder(config, form).build()


class _StepBuilder:
    def __init__(self, config: SalaConfig, form: Form) -> None:
        self.config, self.form, self.graph = config, form, form.graph
        self.graph.opset_imports[OPERATOR_DOMAIN] = OPERATOR_VERSION
        self.step = signature(config, form.cache_dtype)
        self.inputs = {spec.name: self.graph.input(spec) for spec in self.step.inputs}
        self.presents: dict[str, ir.Value] = {}

    def build(self) -> ir.Model:
        stream = self._embed()
        for layer in range(self.config.num_hidden_layers):
            stream = self._layer(layer, stream)
        self.graph.output(self._logits(stream))
        for entry in self.step.caches:
            self.graph.output(self.presents[entry.present.name])
        return self.graph.model()

    def _embed(self) -> ir.Value:
        table, ids = self.form.embedding(), self.inputs[INPUT_IDS]
        with self.graph.module("embed_tokens"):
            shape = (*shape_of(ids), self.config.hidden_size)
            rows = self.graph.node("Gather", [table, ids], {"axis": 0}, shape=shape)
            rows = self.graph.cast(rows, self.form.dtype)
            scale = self.config.scale_emb * stream_unit(self.form.dtype)
            return self.graph.node("Mul", [rows, self.graph.number(scale, self.form.dtype)], name=stream_name(0))

    def _layer(self, layer: int, stream: ir.Value) -> ir.Value:
        """The stream after a layer: mixer and MLP, each normed before and scaled by `residual_scale` after."""
        prefix, scale = f"model.layers.{layer}", self.config.residual_scale
        mixer_in, mlp_in = layer_packs(self.config, layer)
        packed = self.form.normed_product(stream, self._norm(f"{prefix}.input_layernorm.weight"), mixer_in)
        mixed = self._mixer(layer, packed)
        unit = stream_unit(self.form.dtype)
        stream = self.form.residual_product(stream, mixed, f"{prefix}.self_attn.o_proj.weight", scale * unit)
        norm = self._norm(f"{prefix}.post_attention_layernorm.weight")
        # The MLP's products are in the unit of the stream already.
        stream = self.form.mlp(stream, norm, mlp_in, f"{prefix}.mlp.down_proj.weight", scale)
        stream.name = stream_name(layer + 1)
        return stream

    def _norm(self, weight: str) -> Norm:
        return Norm(weight, self.config.rms_norm_eps * stream_unit(self.form.dtype) ** 2)

    def _mixer(self, layer: int, packed: ir.Value) -> ir.Value:
        """What the operator of a layer gives [B, T, width] of its packed projection."""
        mixer = self.config.mixer_types[layer]
        caches = [entry for entry in self.step.caches if entry.layer == layer]
        pasts = [self.inputs[entry.past.name] for entry in caches]
        norms = {
            norm: self.form.operator_weight(f"model.layers.{layer}.self_attn.{norm}.weight")
            for norm in MIXER_MODULES[mixer].norms
        }
        inputs = MIXERS[mixer].inputs(packed, pasts, {**self.inputs, **norms})
        return self._operator(MIXERS[mixer], layer, inputs, caches)

    def _operator(self, kind: MixerKind, layer: int, inputs: list[ir.Value], caches: list[CacheEntry]) -> ir.Value:
        contract, given = kind.contract, kind.attributes(self.config)
        attributes = {each.name: each.type(given[each.name]) for each in contract.attributes}
        width = self.config.num_attention_heads * self.config.head_dim
        outputs: list[tuple[str | None, ir.DataType, Shape]] = [
            (None, IR_TYPES[self.form.dtype], (*shape_of(inputs[0])[:-1], width))
        ]
        outputs += [(entry.present.name, IR_TYPES[entry.present.dtype], entry.present.shape) for entry in caches]
        with self.graph.module(f"layers.{layer}.self_attn"):
            y, *presents = self.graph.nodes(
                contract.onnx_type, inputs, {**attributes, **PLUGIN_ATTRIBUTES}, outputs, domain=OPERATOR_DOMAIN
            )
        self.presents |= {str(present.name): present for present in presents}
        return y

    def _logits(self, stream: ir.Value) -> ir.Value:
        """fp32 [R, V] of the wanted rows."""
        graph, dtype = self.graph, self.form.dtype
        wanted, hidden = self.inputs[LOGIT_ROWS], self.config.hidden_size
        with graph.module("logit_rows"):
            tokens = graph.node("Reshape", [stream, graph.integers(-1, hidden)], shape=(FLAT_ROWS, hidden))
            rows = graph.node("Gather", [tokens, wanted], {"axis": 0}, shape=(*shape_of(wanted), hidden))
        normed = self.form.norm(rows, self._norm(FINAL_NORM))
        divided = graph.node("Div", [normed, graph.number(self.config.logit_divisor, dtype)])
        head = EMBEDDING if self.config.tie_word_embeddings else LM_HEAD
        logits = graph.cast(self.form.product(divided, (head,)), DType.FLOAT32)
        logits.name = self.step.logits.name
        return logits
