"""Products of several weights that share an input: their names, and where a form has to split them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import groupby

import onnx_ir as ir

from ..checkpoint.quantized_weights import QuantizedWeight
from .graph_builder import GraphBuilder

Names = tuple[str, ...]
"""Weights in the checkpoint whose rows a product takes one after the other, `...q_proj.weight` and so on."""

_SHORT = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "z_proj": "z",
    "o_gate": "g",
    "gate_proj": "gate_",
    "up_proj": "up",
}


def product_module(names: Names) -> str:
    """Where the nodes of a product are: in the weight's module, or in one for all, `layers.3.self_attn.qkvz_proj`."""
    *path, role, _ = names[0].removeprefix("model.").split(".")
    if len(names) > 1:
        role = "".join(_SHORT[name.split(".")[-2]] for name in names) + "_proj"
    return ".".join([*path, role])


def layer_module(name: str, depth: int) -> str:
    """The first so many parts of the module that owns the weight `name`: `layers.3`, `layers.3.mlp`."""
    return ".".join(product_module((name,)).split(".")[:depth])


def scales_of(quantized: Mapping[str, QuantizedWeight]) -> Callable[[str], Hashable]:
    """What weights have in common that can be one product where quantised ones share their scales, by their names."""
    return lambda name: quantized[name].product if name in quantized else None


def split_product(
    graph: GraphBuilder, names: Names, kind: Callable[[str], Hashable], product: Callable[[Names], ir.Value]
) -> ir.Value:
    """The outputs of `product` for each stretch of `names` of one `kind`, side by side.

    What a pack keeps in 16 bits, the gates of the mixers as a rule, is a product of its own. So is each part of it that
    has another scale of its input or another global scale. All nodes are named after what they compute.
    """
    products = []
    for _, stretch in groupby(names, key=kind):
        part = tuple(stretch)
        with graph.module(product_module(part)):
            products.append(product(part))
    with graph.module(product_module(names)):
        return graph.concat(products, -1)


def add_scaled(graph: GraphBuilder, stream: ir.Value, product: ir.Value, name: str, scale: ir.Value) -> ir.Value:
    """`stream + scale * product`, in the layer of the weight `name`."""
    with graph.module(layer_module(name, 2)):
        return graph.node("Add", [stream, graph.node("Mul", [product, scale])])
