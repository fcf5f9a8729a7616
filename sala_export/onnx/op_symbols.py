"""The operators as ONNX sees them: schemas and torch translations derived from the contracts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript.values import Op, Opset

from ..ops.common.contract import ACTIVATION, Contract, Tensor
from ..ops.infllmv2_attention import torch_op as infllmv2_op
from ..ops.lightning_attention import torch_op as lightning_op
from ..ops.registry import INFLLMV2_ATTENTION, LIGHTNING_ATTENTION

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


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export(custom_translation_table=...)` needs to write our operators as single nodes."""
    return {
        torch.ops.sala.lightning_attention.default: _translation(LIGHTNING_ATTENTION, lightning_op.lightning_attention),
        torch.ops.sala.infllmv2_attention.default: _translation(INFLLMV2_ATTENTION, infllmv2_op.infllmv2_attention),
    }


def _translation(contract: Contract, torch_op: Callable[..., Any]) -> Callable[..., Any]:
    op = Op(Opset(DOMAIN, VERSION), contract.onnx_type, op_schema(contract))
    tensors = len(contract.inputs)
    names = [attribute.name for attribute in contract.attributes]

    def translate(*arguments: Any) -> Any:
        return op(*arguments[:tensors], **dict(zip(names, arguments[tensors:], strict=True)), **PLUGIN_ATTRIBUTES)

    return translate
