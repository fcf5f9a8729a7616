"""Node names that say where in the model a node comes from.

TensorRT reports its fused layers under ONNX node names, and without a GPU that report is the only view into a plan. So
names carry layer and role: `layers.3.self_attn.qkvz_proj/MatMul`, `layers.3.self_attn/LightningAttention`.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack"
"""How torch.export begins the scope of what it adds itself, the sizes of inputs."""


def name_nodes(graph: ir.Graph) -> None:
    """Rename every node after the module that it was traced from; unique within the graph."""
    seen: Counter[str] = Counter()
    for node in graph:
        base = f"{module_of(node)}/{node.op_type}"
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"


def drop_metadata(model: ir.Model) -> None:
    """Remove the tracer's notes, among them stack traces with paths of the machine that exported."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()


def module_of(node: ir.Node) -> str:
    """Innermost module path of a node, without the wrappers `sala` and `model`; `graph` for nodes of no module."""
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is None:
        return node.name.rpartition("/")[0] if node.name and "/" in node.name else "graph"
    # The last scope is the traced call, the ones before it are modules from the outermost in.
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
    path = modules[-1] if modules and not modules[-1].startswith(_NO_MODULE) else ""
    return path.removeprefix("sala").removeprefix(".").removeprefix("model").removeprefix(".") or "graph"
