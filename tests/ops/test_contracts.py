"""The contracts: what they accept and refuse, and that torch, references and documents agree with them."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sala_export.errors import ShapeError
from sala_export.ops.common.contract import ACTIVATION, Contract
from sala_export.ops.common.expr import evaluate, identifiers
from sala_export.ops.common.markdown import page
from sala_export.ops.infllmv2_attention import reference as infllmv2_reference
from sala_export.ops.infllmv2_attention import torch_op as infllmv2_op
from sala_export.ops.infllmv2_attention.schema import CONTRACT as INFLLMV2_ATTENTION
from sala_export.ops.lightning_attention import reference as lightning_reference
from sala_export.ops.lightning_attention import torch_op as lightning_op
from sala_export.ops.lightning_attention.schema import CONTRACT as LIGHTNING_ATTENTION
from sala_export.ops.registry import CONTRACTS

ROOT = Path(__file__).parents[2]

DIMS = {"B": 2, "T": 5, "C": 70, "C1": 7, "C2": 1}
"""Sizes of every free dimension in the calls below."""

ATTRIBUTES: dict[str, dict[str, int | float]] = {
    "lightning_attention": {"num_heads": 4, "head_dim": 8, "eps": 1e-6, "scale": 0.35},
    "infllmv2_attention": {
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "scale": 0.35,
        "kernel_size": 16,
        "kernel_stride": 8,
        "block_size": 16,
        "topk": 2,
        "window_size": 16,
        "init_blocks": 1,
        "dense_len": -1,
    },
}

OPERATORS: dict[str, Callable[..., Any]] = {
    "lightning_attention": lightning_op.lightning_attention,
    "infllmv2_attention": infllmv2_op.infllmv2_attention_,
}

REFERENCES: dict[str, Callable[..., Any]] = {
    "lightning_attention": lightning_reference.lightning_attention,
    "infllmv2_attention": infllmv2_reference.infllmv2_attention,
}

Call = tuple[list[list[int]], list[str], dict[str, int | float]]

each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.name)


def values(contract: Contract, changes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Every name that a shape may use."""
    integers = {a.name: int(ATTRIBUTES[contract.name][a.name]) for a in contract.attributes if a.type is int}
    return {name: DIMS[name] for name in contract.dims} | integers | dict(changes or {})


def call(contract: Contract, changes: Mapping[str, int] | None = None, dtype: str = "float32") -> Call:
    """Shapes, types and attributes of a call whose dimensions and attributes agree; `changes` override either."""
    names = values(contract, changes)
    shapes = [[evaluate(text, names) for text in tensor.shape] for tensor in contract.inputs]
    dtypes = [dtype if tensor.dtype == ACTIVATION else tensor.dtype for tensor in contract.inputs]
    attributes = {name: names.get(name, value) for name, value in ATTRIBUTES[contract.name].items()}
    return shapes, dtypes, attributes


def tensors(contract: Contract, dtype: str = "float32") -> list[Tensor]:
    """Inputs of a call that also runs: lengths are small, activations finite."""
    generator = torch.Generator().manual_seed(0)
    lengths = {"past_length": torch.tensor([0, 60]), "context_length": torch.tensor([5, 66])}
    shapes, dtypes, _ = call(contract, dtype=dtype)
    return [
        (lengths[tensor.name] if tensor.name in lengths else torch.randn(shape, generator=generator)).to(
            getattr(torch, name)
        )
        for tensor, shape, name in zip(contract.inputs, shapes, dtypes, strict=True)
    ]


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
    first_activation = next(i for i, t in enumerate(contract.inputs) if t.dtype == ACTIVATION)
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


BROKEN_RULES: list[tuple[Contract, dict[str, int], str]] = [
    (LIGHTNING_ATTENTION, {"T": 0}, "T >= 1"),
    (LIGHTNING_ATTENTION, {"head_dim": 7}, "2 * fdiv(head_dim, 2) == head_dim"),
    (LIGHTNING_ATTENTION, {"num_heads": 0}, "num_heads >= 1"),
    (LIGHTNING_ATTENTION, {"num_heads": 12}, "is_power_of_two(num_heads) == 1"),
    (LIGHTNING_ATTENTION, {"head_dim": 0}, "head_dim >= 2"),
    (INFLLMV2_ATTENTION, {"T": 0}, "T >= 1"),
    (INFLLMV2_ATTENTION, {"T": 71}, "C >= T"),
    (INFLLMV2_ATTENTION, {"C1": 6}, "C1 >= fdiv(C - kernel_size, kernel_stride) + 1"),
    (INFLLMV2_ATTENTION, {"C2": 0}, "C2 >= fdiv(C - 4 * kernel_size, 4 * kernel_stride) + 1"),
    (INFLLMV2_ATTENTION, {"num_heads": 5}, "num_kv_heads * fdiv(num_heads, num_kv_heads) == num_heads"),
    (INFLLMV2_ATTENTION, {"block_size": 12}, "kernel_stride * fdiv(block_size, kernel_stride) == block_size"),
    (INFLLMV2_ATTENTION, {"kernel_size": 8, "C1": 9, "C2": 2}, "kernel_size >= kernel_stride + 1"),
    (INFLLMV2_ATTENTION, {"window_size": 24}, "block_size * fdiv(window_size, block_size) == window_size"),
    (INFLLMV2_ATTENTION, {"init_blocks": 2}, "topk >= init_blocks + 1"),
    (INFLLMV2_ATTENTION, {"num_heads": 0}, "num_heads >= 1"),
    (INFLLMV2_ATTENTION, {"num_kv_heads": 0}, "num_kv_heads >= 1"),
    (INFLLMV2_ATTENTION, {"head_dim": 0}, "head_dim >= 1"),
    (INFLLMV2_ATTENTION, {"kernel_size": 0}, "kernel_size >= 1"),
    (INFLLMV2_ATTENTION, {"kernel_stride": 0}, "kernel_stride >= 1"),
    (INFLLMV2_ATTENTION, {"block_size": 0}, "block_size >= 1"),
    (INFLLMV2_ATTENTION, {"window_size": -16}, "window_size >= 0"),
    (INFLLMV2_ATTENTION, {"init_blocks": -1}, "init_blocks >= 0"),
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


def test_every_rule_is_broken_by_some_case_above() -> None:
    covered = {(contract.name, rule) for contract, _, rule in BROKEN_RULES}
    assert covered == {(c.name, f"{r.left} {r.relation} {r.right}") for c in CONTRACTS for r in c.rules}


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
    assert updates
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
    given = OPERATORS[contract.name](*inputs.values(), **ATTRIBUTES[contract.name])
    # What is updated in place is the output of the contract.
    found = list(given) if isinstance(given, tuple) else [given]
    found += [inputs[str(output.updates)] for output in contract.outputs[len(found) :]]
    for tensor, output in zip(found, contract.outputs, strict=True):
        assert tuple(tensor.shape) == tuple(evaluate(text, names) for text in output.shape)
        assert str(tensor.dtype).removeprefix("torch.") == (dtype if output.dtype == ACTIVATION else output.dtype)


@each_contract
def test_reference_takes_inputs_by_position_and_attributes_by_keyword(contract: Contract) -> None:
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(REFERENCES[contract.name]).parameters
    positional = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keyword = [n for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert positional == [t.name for t in contract.inputs]
    assert keyword == [a.name for a in contract.attributes]
    assert len(parameters) == len(positional) + len(keyword)


def test_torch_operators_refuse_what_the_contract_refuses() -> None:
    lightning, infllmv2 = tensors(LIGHTNING_ATTENTION), tensors(INFLLMV2_ATTENTION)
    lightning[5] = lightning[5][:, :3]
    with pytest.raises(ShapeError, match=r"^LightningAttention: state has shape \[2, 3, 8, 8\]"):
        OPERATORS["lightning_attention"](*lightning, **ATTRIBUTES["lightning_attention"])
    infllmv2[6] = infllmv2[6][:, :, :0]
    with pytest.raises(ShapeError, match=r"^InfLLMv2Attention: C2 >= fdiv"):
        OPERATORS["infllmv2_attention"](*infllmv2, **ATTRIBUTES["infllmv2_attention"])


def test_operator_page_is_the_one_that_the_contracts_give() -> None:
    written = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert written == page(CONTRACTS), "run: python -m sala_export.ops.common.markdown docs/operators.md"


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
