"""The contracts: what they accept and refuse, and that torch, references and documents agree with them."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from support.contract_cases import contract_case
from torch import Tensor

from plugins.aot.contracts import check_files, generated_files
from plugins.aot.cpp import AotError
from sala_export.errors import ShapeError
from sala_export.ops.common.contract import ACTIVATION, Contract
from sala_export.ops.common.expr import evaluate, identifiers
from sala_export.ops.common.markdown import page
from sala_export.ops.common.torch_contract import TorchOperator
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import CONTRACTS, INFLLMV2_ATTENTION, LIGHTNING_ATTENTION

ROOT = Path(__file__).parents[2]

Call = tuple[list[list[int]], list[str], dict[str, int | float]]

each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.name)


def values(contract: Contract, changes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Every name that a shape may use."""
    case = contract_case(contract.name)
    integers = {a.name: int(case.attributes[a.name]) for a in contract.attributes if a.type is int}
    return dict(case.dims) | integers | dict(changes or {})


def call(contract: Contract, changes: Mapping[str, int] | None = None, dtype: str = "float32") -> Call:
    """Shapes, types and attributes of a call whose dimensions and attributes agree; `changes` override either."""
    names = values(contract, changes)
    shapes = [[evaluate(text, names) for text in tensor.shape] for tensor in contract.inputs]
    dtypes = [dtype if tensor.dtype == ACTIVATION else tensor.dtype for tensor in contract.inputs]
    attributes = {name: names.get(name, value) for name, value in contract_case(contract.name).attributes.items()}
    return shapes, dtypes, attributes


def tensors(contract: Contract, dtype: str = "float32") -> list[Tensor]:
    """Inputs of a call that also runs: given values, or random ones."""
    generator = torch.Generator().manual_seed(0)
    given = contract_case(contract.name).inputs
    shapes, dtypes, _ = call(contract, dtype=dtype)
    return [
        (torch.tensor(given[tensor.name]) if tensor.name in given else torch.randn(shape, generator=generator)).to(
            getattr(torch, name)
        )
        for tensor, shape, name in zip(contract.inputs, shapes, dtypes, strict=True)
    ]


def torch_operator(contract: Contract) -> TorchOperator[Any]:
    module = import_module(f"sala_export.ops.{contract.name}.torch_op")
    (operator,) = (value for value in vars(module).values() if isinstance(value, TorchOperator))
    assert operator.contract is contract
    return operator


@each_contract
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_call_binds_every_name(contract: Contract, dtype: str) -> None:
    assert contract.bind(*call(contract, dtype=dtype)) == values(contract)


@each_contract
@pytest.mark.parametrize(("dimension", "extent"), [("B", 1), ("T", 1), ("T", 7), ("T", 70)])
def test_free_dimensions_bind_to_what_is_given(contract: Contract, dimension: str, extent: int) -> None:
    assert contract.bind(*call(contract, {dimension: extent})) == values(contract, {dimension: extent})


@each_contract
def test_every_extent_that_is_not_free_is_checked(contract: Contract) -> None:
    """One more in any extent is refused, unless the extent is a dimension that no other input has."""
    everywhere = [text for tensor in contract.inputs for text in tensor.shape]
    checked = 0
    for i, tensor in enumerate(contract.inputs):
        for axis, text in enumerate(tensor.shape):
            if text in contract.dims and everywhere.count(text) == 1:
                continue
            shapes, dtypes, attributes = call(contract)
            shapes[i][axis] += 1
            named = "|".join(t.name for t in contract.inputs if text in t.shape)
            with pytest.raises(ShapeError, match=rf"^{contract.onnx_type}: ({named}) has shape \[.*\], expected \["):
                contract.bind(shapes, dtypes, attributes)
            checked += 1
    assert checked >= len(contract.inputs)


@each_contract
def test_every_rank_is_checked(contract: Contract) -> None:
    for i, tensor in enumerate(contract.inputs):
        shapes, dtypes, attributes = call(contract)
        shapes[i].append(1)
        with pytest.raises(ShapeError, match=rf"^{contract.onnx_type}: {tensor.name} has {len(shapes[i])} dimensions"):
            contract.bind(shapes, dtypes, attributes)


@each_contract
@pytest.mark.parametrize("wrong", ["int64", "bfloat16", "float64", "bool"])
def test_every_type_is_checked(contract: Contract, wrong: str) -> None:
    """Float64 may stand in for float32 where the contract says float32, so that references can run in double."""
    first_activation = next((i for i, t in enumerate(contract.inputs) if t.dtype == ACTIVATION), None)
    refused = 0
    for i, tensor in enumerate(contract.inputs):
        shapes, dtypes, attributes = call(contract)
        if (tensor.dtype, wrong) == ("float32", "float64"):
            continue
        if i == first_activation and wrong in ("bfloat16", "float64"):
            # It then decides the type, and the next activation is the wrong one.
            continue
        dtypes[i] = wrong
        with pytest.raises(ShapeError, match=rf"^{contract.onnx_type}: {tensor.name} is {wrong}, expected"):
            contract.bind(shapes, dtypes, attributes)
        refused += 1
    assert refused >= len(contract.inputs) - 3


@each_contract
def test_number_of_inputs_is_checked(contract: Contract) -> None:
    shapes, dtypes, attributes = call(contract)
    with pytest.raises(
        ShapeError, match=f"^{contract.onnx_type}: expected {len(shapes)} inputs, got {len(shapes) - 1}"
    ):
        contract.bind(shapes[:-1], dtypes[:-1], attributes)


@each_contract
def test_every_attribute_is_required_and_no_other_is_known(contract: Contract) -> None:
    for attribute in contract.attributes:
        shapes, dtypes, attributes = call(contract)
        del attributes[attribute.name]
        with pytest.raises(
            ShapeError, match=f"^{contract.onnx_type}: attributes missing or unknown: {attribute.name}$"
        ):
            contract.bind(shapes, dtypes, attributes)
    shapes, dtypes, attributes = call(contract)
    with pytest.raises(ShapeError, match=f"^{contract.onnx_type}: attributes missing or unknown: head_size$"):
        contract.bind(shapes, dtypes, attributes | {"head_size": 8})


@each_contract
@pytest.mark.parametrize("wrong", [4.5, True, "4"])
def test_integer_attributes_take_integers_only(contract: Contract, wrong: Any) -> None:
    for attribute in contract.attributes:
        shapes, dtypes, attributes = call(contract)
        if attribute.type is int:
            with pytest.raises(
                ShapeError, match=rf"^{contract.onnx_type}: {attribute.name} is {wrong!r}, expected an int"
            ):
                contract.bind(shapes, dtypes, attributes | {attribute.name: wrong})


BROKEN_RULES = [
    pytest.param(contract, changes, rule, id=f"{contract.name}: {rule}")
    for contract in CONTRACTS
    for changes, rule in contract_case(contract.name).broken_rules
]


@pytest.mark.parametrize(("contract", "changes", "rule"), BROKEN_RULES)
def test_broken_rule_is_refused_with_its_text_and_reason(
    contract: Contract, changes: dict[str, int], rule: str
) -> None:
    (doc,) = (r.doc for r in contract.rules if f"{r.left} {r.relation} {r.right}" == rule)
    with pytest.raises(ShapeError) as error:
        contract.bind(*call(contract, changes))
    assert str(error.value).startswith(f"{contract.onnx_type}: {rule} does not hold (")
    assert str(error.value).endswith(f": {doc}")


@each_contract
def test_every_rule_is_broken_by_some_case_above(contract: Contract) -> None:
    covered = {rule for _, rule in contract_case(contract.name).broken_rules}
    assert covered == {f"{r.left} {r.relation} {r.right}" for r in contract.rules}


@each_contract
def test_contract_uses_only_names_that_it_defines(contract: Contract) -> None:
    known = set(values(contract))
    texts = [text for tensor in (*contract.inputs, *contract.outputs) for text in tensor.shape]
    texts += [side for rule in contract.rules for side in (rule.left, rule.right)]
    assert set().union(*(identifiers(text) for text in texts)) <= known
    bound = {text for tensor in contract.inputs for text in tensor.shape if text in contract.dims}
    assert bound == set(contract.dims), "every dimension is the extent of some input"
    names = [t.name for t in (*contract.inputs, *contract.outputs)] + [a.name for a in contract.attributes]
    assert len(names) == len(set(names))


@each_contract
def test_updated_inputs_have_the_shape_and_type_of_their_outputs(contract: Contract) -> None:
    inputs = {tensor.name: tensor for tensor in contract.inputs}
    updates = [output for output in contract.outputs if output.updates is not None]
    assert bool(updates) == contract.name.endswith("attention")
    for output in updates:
        assert output.updates is not None
        before = inputs[output.updates]
        assert (output.shape, output.dtype) == (before.shape, before.dtype)
        assert output.name == f"{before.name}_out"


@each_contract
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_have_the_shapes_and_types_of_the_contract(contract: Contract, dtype: str) -> None:
    names = values(contract)
    inputs = dict(zip((tensor.name for tensor in contract.inputs), tensors(contract, dtype), strict=True))
    given = torch_operator(contract)(*inputs.values(), **contract_case(contract.name).attributes)
    # Without an input of that type the reference gives float32.
    activation = dtype if any(tensor.dtype == ACTIVATION for tensor in contract.inputs) else "float32"
    # What is updated in place is the output of the contract.
    found = list(given) if isinstance(given, tuple) else [given]
    found += [inputs[str(output.updates)] for output in contract.outputs[len(found) :]]
    for tensor, output in zip(found, contract.outputs, strict=True):
        assert tuple(tensor.shape) == tuple(evaluate(text, names) for text in output.shape)
        assert str(tensor.dtype).removeprefix("torch.") == (activation if output.dtype == ACTIVATION else output.dtype)


@each_contract
def test_reference_takes_inputs_by_position_and_attributes_by_keyword(contract: Contract) -> None:
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(torch_operator(contract).reference).parameters
    positional = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keyword = [n for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert positional == [t.name for t in contract.inputs]
    assert keyword == [a.name for a in contract.attributes]
    assert len(parameters) == len(positional) + len(keyword)


def test_torch_operators_refuse_what_the_contract_refuses() -> None:
    lightning, infllmv2 = tensors(LIGHTNING_ATTENTION), tensors(INFLLMV2_ATTENTION)
    lightning[5] = lightning[5][:, :3]
    with pytest.raises(ShapeError, match=r"^LightningAttention: state has shape \[2, 3, 8, 8\]"):
        torch_operator(LIGHTNING_ATTENTION)(*lightning, **contract_case("lightning_attention").attributes)
    infllmv2[6] = infllmv2[6][:, :, :0]
    with pytest.raises(ShapeError, match=r"^InfLLMv2Attention: C2 >= fdiv"):
        torch_operator(INFLLMV2_ATTENTION)(*infllmv2, **contract_case("infllmv2_attention").attributes)


def test_generated_files_are_what_the_contracts_give() -> None:
    check_files(generated_files(CONTRACTS), ROOT)


def test_generated_file_that_is_missing_is_named_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "operators.md").write_text(page(CONTRACTS, "make"), encoding="utf-8")
    with pytest.raises(AotError, match=r"plugins/cpu/operators\.h.*docs/operators\.md: .* run python -m plugins\.aot"):
        check_files(generated_files(CONTRACTS), tmp_path)


def test_every_folder_with_a_contract_is_registered_with_its_kernels() -> None:
    folders = {path.parent.name for path in (ROOT / "sala_export" / "ops").glob("*/schema.py")}
    assert folders == {contract.name for contract in CONTRACTS}, "registry.py lists the operators"
    assert folders == KERNEL_SETS.keys(), "kernel_sets.py lists their kernels"


@each_contract
def test_operator_folder_holds_the_files_that_the_overview_promises(contract: Contract) -> None:
    folder = ROOT / "sala_export" / "ops" / contract.name
    for file in ("README.md", "schema.py", "reference.py", "torch_op.py"):
        assert (folder / file).is_file()
    overview = (folder.parent / "README.md").read_text(encoding="utf-8")
    assert f"`sala::{contract.onnx_type}`" in overview
    assert f"({contract.name}/README.md)" in overview


def test_contracts_import_neither_torch_nor_triton() -> None:
    """A schema must be readable where only the C++ side is built."""
    source = "import sys, sala_export.ops.registry; print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(result.stdout)
    assert "sala_export.ops.registry" in loaded
    assert not {"torch", "triton", "onnx", "numpy"} & set(loaded)
