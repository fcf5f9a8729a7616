"""The page `docs/operators.md`, written from the contracts.

`python -m sala_export.ops.common.markdown docs/operators.md` rewrites it; `tests/ops/test_contracts.py` fails while the
file and the contracts differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..registry import CONTRACTS
from .contract import ACTIVATION, Contract, Tensor

_PREAMBLE = f"""\
<!-- Written by `python -m sala_export.ops.common.markdown docs/operators.md`. Edit schema.py instead. -->
# Operators

The operators of an exported model, in ONNX domain and TensorRT plugin namespace `sala`, version 1. Everything here
holds for all implementations alike.

* `{ACTIVATION}` is one floating type per call, that of the activations: float32, float16 or bfloat16.
* Tensors are dense and row-major. All attributes are required.
* `fdiv(a, b)` divides and rounds down.
* An output that is the new value of an input shares its buffer at run time: one address for both, updated in place.
* A call that breaks a rule is refused with a `ShapeError` that names the operator and the tensor.
"""


def page(contracts: Sequence[Contract]) -> str:
    """The whole page as markdown."""
    return "\n".join([_PREAMBLE, *(_section(contract) for contract in contracts)])


def _section(contract: Contract) -> str:
    parts = [
        f"## {contract.onnx_type}",
        f"{contract.doc}\nEquations: [`{contract.name}/README.md`](../sala_export/ops/{contract.name}/README.md).",
        _table(("input", "type", "shape", "meaning"), (_tensor_cells(t) for t in contract.inputs)),
        _table(("output", "type", "shape", "meaning"), (_tensor_cells(t) for t in contract.outputs)),
        _table(
            ("attribute", "type", "meaning"), ((f"`{a.name}`", a.type.__name__, a.doc) for a in contract.attributes)
        ),
        _table(("dimension", "meaning"), ((f"`{name}`", doc) for name, doc in contract.dims.items())),
        _table(("rule", "because"), ((f"`{r.left} {r.relation} {r.right}`", r.doc) for r in contract.rules)),
    ]
    return "\n\n".join(parts) + "\n"


def _tensor_cells(tensor: Tensor) -> tuple[str, ...]:
    update = f" New value of `{tensor.updates}`." if tensor.updates else ""
    return f"`{tensor.name}`", tensor.dtype, f"`[{', '.join(tensor.shape)}]`", tensor.doc + update


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the operator reference from the contracts.")
    parser.add_argument("path", type=Path, help="markdown file to overwrite")
    parser.parse_args().path.write_text(page(CONTRACTS), encoding="utf-8")


if __name__ == "__main__":
    main()
