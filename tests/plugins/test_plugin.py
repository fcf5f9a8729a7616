"""What the plugins tell TensorRT, and what they refuse: one line that names the operator and what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.plugin_calls import LIGHTNING, SPARSE, PluginCall, PluginDriver

from sala_export.errors import ShapeError
from sala_export.ops.common.contract import ACTIVATION
from sala_export.ops.kernel_sets import KERNEL_SETS

OPERATORS = pytest.mark.parametrize("call", [LIGHTNING, SPARSE], ids=lambda call: call.contract.name)


@OPERATORS
def test_valid_call_passes_every_stage(driver: PluginDriver, call: PluginCall) -> None:
    for answer in driver.run(call, "configure", "shape_change", "enqueue")[1:]:
        assert (answer["result"], answer["log"]) == (0, [])


@OPERATORS
def test_building_needs_no_driver(driver: PluginDriver, call: PluginCall) -> None:
    for answer in driver.run(call, "types", "formats", "workspace_size", "configure", "serialize"):
        assert not answer["events"]


@OPERATORS
@pytest.mark.parametrize("tokens", [1, 37])
def test_workspace_size_is_the_kernel_sets(driver: PluginDriver, call: PluginCall, tokens: int) -> None:
    call = replace(call, dims={**call.dims, "T": tokens})
    _, size = driver.run(call, "workspace_size")
    assert size["result"] == call.workspace_bytes > 0


@OPERATORS
def test_output_types_follow_the_contract(driver: PluginDriver, call: PluginCall) -> None:
    _, types = driver.run(call, "types")
    assert types["types"] == types["given"]
    assert len(types["types"]) == len(call.contract.outputs)


@OPERATORS
def test_output_shapes_follow_the_contract(driver: PluginDriver, call: PluginCall) -> None:
    _, shapes = driver.run(call, "output_shapes")
    assert shapes["result"] == 0, shapes["log"]
    assert shapes["shapes"] == [call.shape_of(tensor) for tensor in call.contract.outputs]


@OPERATORS
@pytest.mark.parametrize("action", ["types", "output_shapes", "configure", "shape_change"])
def test_extra_input_is_refused_at_every_stage(driver: PluginDriver, call: PluginCall, action: str) -> None:
    _, _, answer = driver.run(call, "input bfloat16 4096 3 5", action)
    inputs, outputs = len(call.contract.inputs), len(call.contract.outputs)
    assert answer["result"] != 0
    assert answer["log"] == [
        f"{call.contract.onnx_type}: expected {inputs} inputs and {outputs} outputs, got {inputs + 1} and {outputs}"
    ]


@OPERATORS
def test_no_format_suits_a_node_with_an_extra_input(driver: PluginDriver, call: PluginCall) -> None:
    _, _, answer = driver.run(call, "input bfloat16 4096 3 5", "formats")
    assert not any(answer["formats"])


@OPERATORS
def test_formats_are_those_of_the_contract(driver: PluginDriver, call: PluginCall) -> None:
    _, right = driver.run(call, "formats")
    assert all(right["formats"])
    for tensor in (*call.contract.inputs, *call.contract.outputs):
        _, wrong = driver.run(replace(call, dtypes={tensor.name: "int64"}), "formats")
        position = [t.name for t in (*call.contract.inputs, *call.contract.outputs)].index(tensor.name)
        assert not wrong["formats"][position]
        assert all(wrong["formats"][:position])


@OPERATORS
def test_activations_without_cubins_are_no_supported_format(driver: PluginDriver, call: PluginCall) -> None:
    _, formats = driver.run(replace(call, activation="float32"), "formats")
    first = next(i for i, tensor in enumerate(call.contract.inputs) if tensor.dtype == ACTIVATION)
    assert not formats["formats"][first]


@OPERATORS
def test_serialized_attributes_make_the_same_plugin(driver: PluginDriver, call: PluginCall) -> None:
    # Without counters, which are an instance's own: the one takes them in decode, the other in prefill.
    call = replace(call, dims={**call.dims, "T": 37 if call is LIGHTNING else 1})
    _, direct, serialized, again = driver.run(call, "enqueue", "serialize", "enqueue")
    rounded = {k: v if isinstance(v, int) else float(np.float32(v)) for k, v in call.attributes.items()}
    assert {name: pytest.approx(value, rel=1e-8) for name, value in serialized["fields"]} == rounded
    assert serialized["result"] == 1
    launches = [[event for event in answer["events"] if event["event"] == "launch"] for answer in (direct, again)]
    assert launches[0] == launches[1] != []


@OPERATORS
def test_attributes_may_come_with_32_bits(driver: PluginDriver, call: PluginCall) -> None:
    created, _, enqueued = driver.run(replace(call, integer_command="int32"), "shape_change", "enqueue")
    assert (created["result"], enqueued["result"]) == (1, 0)


@OPERATORS
def test_missing_attribute_is_named(driver: PluginDriver, call: PluginCall) -> None:
    for missing in call.attributes:
        rest = {name: value for name, value in call.attributes.items() if name != missing}
        made = driver.create(replace(call, attributes=rest))
        assert made["result"] == 0
        assert made["log"] == [f"{call.contract.onnx_type}: attribute {missing} is missing or not a single value"]


@OPERATORS
def test_attribute_of_another_type_is_named(driver: PluginDriver, call: PluginCall) -> None:
    for name, value in call.attributes.items():
        other = float(value) if isinstance(value, int) else 1
        made = driver.create(call.with_attributes(**{name: other}))
        assert made["result"] == 0
        (line,) = made["log"]
        assert line.startswith(f"{call.contract.onnx_type}: attribute {name} has TensorRT field type ")


@OPERATORS
def test_variant_without_cubins_is_refused_with_those_that_are(driver: PluginDriver, call: PluginCall) -> None:
    made = driver.create(call.with_attributes(head_dim=96))
    assert made["result"] == 0
    fixed = {name: call.attributes[name] for name in KERNEL_SETS[call.contract.name].variant_attributes}
    wanted, *shipped = (
        ", ".join(f"{name} = {value}" for name, value in {**fixed, "head_dim": head_dim}.items())
        for head_dim in (96, 64, 128)
    )
    assert made["log"] == [
        f"{call.contract.onnx_type}: no kernels for {wanted}; there are kernels for {'; '.join(shipped)}"
    ]


@OPERATORS
def test_attribute_beyond_32_bits_is_refused(driver: PluginDriver, call: PluginCall) -> None:
    made = driver.create(call.with_attributes(num_heads=2**32 + 4))
    assert made["log"] == [f"{call.contract.onnx_type}: attribute num_heads = {2**32 + 4} does not fit 32 bits"]


@OPERATORS
@pytest.mark.parametrize("action", ["configure", "shape_change", "enqueue"])
def test_wrong_shape_of_every_tensor_is_named_at_every_stage(
    driver: PluginDriver, call: PluginCall, action: str
) -> None:
    for tensor in (*call.contract.inputs, *call.contract.outputs):
        shape = [*call.shape_of(tensor)]
        shape[-1] += 1
        _, answer = driver.run(replace(call, shapes={tensor.name: shape}), action)
        assert answer["result"] != 0
        (line,) = answer["log"]
        assert line.startswith(
            f"{call.contract.onnx_type}: {tensor.name} has shape [{', '.join(map(str, shape))}], "
            f"expected [{', '.join(tensor.shape)}] with {tensor.shape[-1]} = "
        )
        assert not answer["events"]


@OPERATORS
def test_wrong_rank_is_named(driver: PluginDriver, call: PluginCall) -> None:
    tensor = call.contract.inputs[0]
    shape = [*call.shape_of(tensor), 1]
    _, answer = driver.run(replace(call, shapes={tensor.name: shape}), "configure")
    assert answer["log"] == [
        f"{call.contract.onnx_type}: {tensor.name} has shape [{', '.join(map(str, shape))}], "
        f"expected [{', '.join(tensor.shape)}]"
    ]


@OPERATORS
def test_wrong_type_is_named(driver: PluginDriver, call: PluginCall) -> None:
    for tensor in (*call.contract.inputs, *call.contract.outputs):
        _, answer = driver.run(replace(call, dtypes={tensor.name: "int64"}), "configure")
        assert answer["result"] != 0
        (line,) = answer["log"]
        assert line.startswith(f"{call.contract.onnx_type}: {tensor.name} is int64")


def _broken(call: PluginCall, **changes: int) -> PluginCall:
    """The call with other attributes or dimensions."""
    dims = {name: changes.get(name, value) for name, value in call.dims.items()}
    attributes = {name: changes.get(name, value) for name, value in call.attributes.items()}
    return replace(call, attributes=attributes, dims=dims)


@pytest.mark.parametrize(
    "call",
    [
        _broken(LIGHTNING, T=0),
        _broken(SPARSE, T=1004),
        _broken(SPARSE, C1=60),
        _broken(SPARSE, C2=13),
        _broken(SPARSE, num_heads=9),
        _broken(SPARSE, window_size=96),
        _broken(SPARSE, topk=1),
    ],
)
def test_broken_rule_of_the_contract_reads_as_in_python(driver: PluginDriver, call: PluginCall) -> None:
    shapes = [call.shape_of(tensor) for tensor in call.contract.inputs]
    dtypes = [call.activation if tensor.dtype == ACTIVATION else tensor.dtype for tensor in call.contract.inputs]
    with pytest.raises(ShapeError) as raised:
        call.contract.bind(shapes, dtypes, call.attributes)
    _, answer = driver.run(call, "configure")
    assert answer["result"] != 0
    assert answer["log"] == [str(raised.value)]


def test_broken_rule_of_the_kernels_is_named(driver: PluginDriver) -> None:
    call = _broken(SPARSE, num_heads=34)
    _, answer = driver.run(call, "configure")
    assert answer["result"] != 0
    (line,) = answer["log"]
    broken = next(rule for rule in call.kernel_set.rules if not rule.holds(call.names))
    assert line.startswith(f"{call.contract.onnx_type}: {broken.left} {broken.relation} {broken.right} does not hold")
    assert line.endswith(broken.doc)


@OPERATORS
def test_grid_beyond_cuda_is_refused_when_building(driver: PluginDriver, call: PluginCall) -> None:
    _, answer = driver.run(replace(call, dims={**call.dims, "B": 65536 * 2}), "configure")
    assert answer["result"] != 0
    (line,) = answer["log"]
    assert "CUDA allows 65535; use a shorter chunk or a smaller batch" in line
