"""The page `docs/operators.md`, written from the contracts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .contract import ACTIVATION, Contract, Tensor

_PREAMBLE = f"""\
# Operators

The operators of an exported model, in ONNX domain and TensorRT plugin namespace `sala`, version 1. Everything here
holds for all implementations alike.

* `{ACTIVATION}` is one floating type per call, that of the activations: float32, float16 or bfloat16.
  On a CPU activations are float32. There a cache, which is a tensor of type `{ACTIVATION}` that is updated in place,
  may be float32, float16 or bfloat16, and all caches of a call share one type.
* Tensors are dense and row-major. All attributes are required.
* `fdiv(a, b)` divides and rounds down; `is_power_of_two(n)` is 1 for 1, 2, 4 and so on, else 0.
* An output that is the new value of an input shares its buffer at run time: one address for both, updated in place.
* A call that breaks a rule is refused with a `ShapeError` that names the operator and the tensor.
"""


def page(contracts: Sequence[Contract], command: str) -> str:
    """The whole page as markdown; `command` is what writes it."""
    note = f"<!-- Written by `{command}`. Edit schema.py instead. -->"
    return "\n".join([note, _PREAMBLE, *(_section(contract) for contract in contracts)])


def _section(contract: Contract) -> str:
    parts = [
        f"## {contract.onnx_type}",
        f"{contract.doc}\nEquations: [`{contract.name}/README.md`](../sala_export/ops/{contract.name}/README.md).",
        _table(("input", "type", "shape", "meaning"), (_tensor_cells(t) for t in contract.inputs)),
        _table(("output", "type", "shape", "meaning"), (_tensor_cells(t) for t in contract.outputs)),
        *_attributes(contract),
        _table(("dimension", "meaning"), ((f"`{name}`", doc) for name, doc in contract.dims.items())),
        _table(("rule", "because"), ((f"`{r.left} {r.relation} {r.right}`", r.doc) for r in contract.rules)),
    ]
    return "\n\n".join(parts) + "\n"


def _attributes(contract: Contract) -> list[str]:
    """Their table; a contract without attributes has none."""
    rows = [(f"`{a.name}`", a.type.__name__, a.doc) for a in contract.attributes]
    return [_table(("attribute", "type", "meaning"), rows)] if rows else []


def _tensor_cells(tensor: Tensor) -> tuple[str, ...]:
    update = f" New value of `{tensor.updates}`." if tensor.updates else ""
    return f"`{tensor.name}`", tensor.dtype, f"`[{', '.join(tensor.shape)}]`", tensor.doc + update


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
