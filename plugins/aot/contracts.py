"""Writes everything in the repository that follows from the contracts of the operators.

Run it as `python -m plugins.aot.contracts` from the root of the checkout after a change to a `schema.py`. It writes
`plugins/<op>/<op>_contract.h` for C++, `plugins/cpu/operators.h` with the list of the CPU operators, and the page
`docs/operators.md`. The files are committed, so that the CPU operators build where there is no Python;
`tests/ops/test_contracts.py` and the build of the GPU plugins fail while one of them is out of date.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from sala_export.ops.common.contract import ACTIVATION, Attribute, Contract, Tensor
from sala_export.ops.common.markdown import page
from sala_export.ops.registry import CONTRACTS

from .cpp import DATA_TYPES, WIDTH, AotError, Arrays, Names, braced, quoted

_COMMAND = "python -m plugins.aot.contracts"
_CPU_TYPES: Mapping[str, str] = {
    "X": "float",
    "float32": "float",
    "float8_e4m3fn": "uint8_t",
    "int32": "int32_t",
    "int64": "int64_t",
}
"""Element types of the CPU operators, which take activations in float32 and fp8 as its bytes."""
_OPERATOR_LIST = "cpu/operators.h"
_CACHE_FIELD = (
    "  /// Element type of the caches: kFloat32, kBFloat16 or kFloat16. Everything else is float32.\n"
    "  DataType cache_dtype;\n"
)


def main() -> None:
    for path, text in generated_files(CONTRACTS).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def generated_files(contracts: Sequence[Contract]) -> dict[Path, str]:
    """The text of every generated file, by its path from the root of the checkout."""
    return source_files(contracts) | {Path("docs/operators.md"): page(contracts, _COMMAND)}


def source_files(contracts: Sequence[Contract]) -> dict[Path, str]:
    """The text of those generated files that a build compiles. It may have no documents beside them."""
    headers = {Path("plugins") / contract_header(contract): _header(contract) for contract in contracts}
    operators = {Path("plugins") / _OPERATOR_LIST: _operator_list(contracts)}
    return headers | operators


def check_files(files: Mapping[Path, str], root: Path) -> None:
    """Raises: AotError naming the files below `root` that are missing or out of date, and the command to run."""

    def is_old(path: Path, text: str) -> bool:
        return not path.is_file() or path.read_text(encoding="utf-8") != text

    if old := [str(path) for path, text in files.items() if is_old(root / path, text)]:
        raise AotError(f"{', '.join(old)}: not what the contracts say: run {_COMMAND}")


def contract_header(contract: Contract) -> str:
    """Where C++ includes the contract from."""
    return f"{contract.name}/{contract.name}_contract.h"


def _header(contract: Contract) -> str:
    return (
        f"// The contract of {contract.onnx_type} for C++. Written by `{_COMMAND}`: change\n"
        f"// sala_export/ops/{contract.name}/schema.py, then run it.\n// clang-format off\n\n"
        '#pragma once\n\n#include "common/contract_table.h"\n#include "common/expression.h"\n\n'
        f"namespace sala::ops {{\n\n{_sizes(contract)}\n{_tensors(contract)}\n{_table(contract)}\n"
        "}  // namespace sala::ops\n"
    )


def _sizes(contract: Contract) -> str:
    names = Names(contract)
    docs = {a.name: a.doc for a in contract.attributes} | dict(contract.dims)
    fields = [*(("int64_t", name) for name in names.all), *(("float", name) for name in names.floats)]
    body = "".join(f"{_comment(docs[name], '  ')}  {kind} {name};\n" for kind, name in fields)
    return f"/// Attributes and dimensions of one call.\nstruct {contract.onnx_type}Sizes {{\n{body}}};\n"


def _tensors(contract: Contract) -> str:
    def field(tensor: Tensor, const: str) -> str:
        doc = f"[{', '.join(tensor.shape)}] {tensor.doc}"
        return f"{_comment(doc, '  ')}  {const}{_cpu_type(contract, tensor)}* {tensor.name};\n"

    caches = _CACHE_FIELD if _has_caches(contract) else ""
    body = (
        caches + "".join(field(t, "const ") for t in contract.inputs) + "".join(field(t, "") for t in contract.outputs)
    )
    about = _comment(
        "The tensors of one call on the CPU, dense and row-major. The new value of an input may have that input's "
        "address: it is then updated in place. No other overlap is allowed.",
        "",
    )
    return f"{about}struct {contract.onnx_type}Tensors {{\n{body}}};\n"


def _table(contract: Contract) -> str:
    names, arrays = Names(contract), Arrays("inline constexpr")
    members = (
        quoted(contract.onnx_type),
        arrays.add("Attribute", "Attributes", (_attribute(names, a) for a in contract.attributes)),
        arrays.add("const char*", "Names", map(quoted, names.all)),
        str(len(names.integers)),
        str(len(names.floats)),
        _tensor_rules(contract, names, arrays, "Input", contract.inputs),
        _tensor_rules(contract, names, arrays, "Output", contract.outputs),
        arrays.add("Condition", "Conditions", map(names.condition, contract.rules)),
    )
    return (
        f"namespace {contract.name} {{\n\n{arrays}"
        f"inline constexpr ContractTable kContract =\n    {braced(members)};\n\n}}  // namespace {contract.name}\n"
    )


def _attribute(names: Names, attribute: Attribute) -> str:
    is_float = attribute.type is float
    index = (names.floats if is_float else names.integers).index(attribute.name)
    return braced((quoted(attribute.name), "true" if is_float else "false", str(index)))


def _tensor_rules(contract: Contract, names: Names, arrays: Arrays, kind: str, tensors: Sequence[Tensor]) -> str:
    inputs = [tensor.name for tensor in contract.inputs]

    def extent(text: str) -> str:
        dimension = str(names.all.index(text)) if text in contract.dims else "kNone"
        return braced((quoted(text), names.expression(text), dimension))

    rules = []
    shapes: dict[tuple[str, ...], str] = {}
    for i, tensor in enumerate(tensors):
        if tensor.shape not in shapes:
            shapes[tensor.shape] = arrays.add("Extent", f"{kind}{i}Shape", map(extent, tensor.shape))
        shape = shapes[tensor.shape]
        updates = str(inputs.index(tensor.updates)) if tensor.updates else "kNone"
        rules.append(braced((quoted(tensor.name), DATA_TYPES[tensor.dtype], shape, updates)))
    return arrays.add("TensorRule", f"{kind}s", rules)


def _operator_list(contracts: Sequence[Contract]) -> str:
    includes = "".join(f'#include "{c.name}/{c.name}_cpu.h"\n' for c in contracts)
    operators = "".join(map(_cpu_operator, contracts))
    return (
        f"// The operators on the CPU, by contract. Written by `{_COMMAND}`.\n// clang-format off\n\n"
        f'#pragma once\n\n#include "cpu/operator.h"\n{includes}\n'
        f"namespace sala::cpu {{\n\ninline constexpr Operator kOperators[] = {{\n{operators}}};\n\n"
        "}  // namespace sala::cpu\n"
    )


def _cpu_operator(contract: Contract) -> str:
    names = Names(contract)
    sizes = [f"arguments.names[{i}]" for i in range(len(names.all))] + [
        f"arguments.floats[{i}]" for i in range(len(names.floats))
    ]
    tensors = ["arguments.cache_dtype"] if _has_caches(contract) else []
    tensors += [f"arguments.input<{_cpu_type(contract, t)}>({i})" for i, t in enumerate(contract.inputs)]
    tensors += [f"arguments.output<{_cpu_type(contract, t)}>({i})" for i, t in enumerate(contract.outputs)]
    lines = "".join(
        textwrap.fill(
            f"const ops::{contract.onnx_type}{kind} {kind.lower()}{{{', '.join(fields)}}};",
            WIDTH,
            initial_indent=" " * 7,
            subsequent_indent=" " * 11,
        )
        + "\n"
        for kind, fields in (("Sizes", sizes), ("Tensors", tensors))
    )
    return (
        f"    {{ops::{contract.name}::kContract,\n"
        "     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {\n"
        f"{lines}"
        f"       return ops::{contract.name}_cpu(sizes, tensors, parallel, level);\n"
        "     }},\n"
    )


def _is_cache(contract: Contract, tensor: Tensor) -> bool:
    """Says if a tensor has the type of the activations and is updated in place, or is the new value of one that is."""
    is_updated = any(output.updates == tensor.name for output in contract.outputs)
    return tensor.dtype == ACTIVATION and (is_updated or tensor.updates is not None)


def _has_caches(contract: Contract) -> bool:
    return any(_is_cache(contract, tensor) for tensor in contract.outputs)


def _cpu_type(contract: Contract, tensor: Tensor) -> str:
    if _is_cache(contract, tensor):
        return "void"
    if tensor.dtype not in _CPU_TYPES:
        raise AotError(f"{tensor.name} is {tensor.dtype}: CPU operators take {', '.join(_CPU_TYPES)}")
    return _CPU_TYPES[tensor.dtype]


def _comment(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{indent}/// ", subsequent_indent=f"{indent}/// ") + "\n"


if __name__ == "__main__":
    main()
