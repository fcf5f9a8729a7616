"""The operators as ONNX sees them: names, plugin attributes and schemas derived from the contracts."""

from __future__ import annotations

import onnx

from ..ops.common.contract import ACTIVATION, Contract, Tensor

DOMAIN = "sala"
VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
"""String attributes by which TensorRT's parser finds the plugin of a node."""

_ONNX_ACTIVATIONS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_ONNX_TYPES = {"float32": "tensor(float)", "int32": "tensor(int32)"}


def op_schema(contract: Contract) -> onnx.defs.OpSchema:
    """The ONNX schema of an operator, version 1 of domain `sala`."""
    kinds = onnx.defs.OpSchema.AttrType
    attributes = [
        onnx.defs.OpSchema.Attribute(a.name, kinds.INT if a.type is int else kinds.FLOAT, a.doc, required=True)
        for a in contract.attributes
    ]
    attributes += [
        onnx.defs.OpSchema.Attribute(name, kinds.STRING, "TensorRT plugin lookup.", required=True)
        for name in PLUGIN_ATTRIBUTES
    ]
    return onnx.defs.OpSchema(
        contract.onnx_type,
        DOMAIN,
        VERSION,
        doc=contract.doc,
        inputs=[_parameter(t) for t in contract.inputs],
        outputs=[_parameter(t) for t in contract.outputs],
        type_constraints=[(ACTIVATION, _ONNX_ACTIVATIONS, "Type of all activations.")],
        attributes=attributes,
    )


def _parameter(tensor: Tensor) -> onnx.defs.OpSchema.FormalParameter:
    type_name = ACTIVATION if tensor.dtype == ACTIVATION else _ONNX_TYPES[tensor.dtype]
    return onnx.defs.OpSchema.FormalParameter(
        tensor.name, type_name, description=f"[{', '.join(tensor.shape)}] {tensor.doc}"
    )
