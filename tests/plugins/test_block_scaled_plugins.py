"""The block-scaled operators as plugins: fp8 tensors, no attributes, no activation among inputs, one architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.plugin_calls import BLOCK_SCALED, PluginCall, PluginDriver, events_of

from sala_export.errors import ShapeError
from sala_export.ops.common.contract import ACTIVATION

QUANTIZE, NORM, PRODUCT, PRODUCT_ADD = BLOCK_SCALED
OPERATORS = pytest.mark.parametrize("call", BLOCK_SCALED, ids=lambda call: call.contract.name)


def changed(call: PluginCall, **changes: int) -> PluginCall:
    """The call with other attributes or dimensions."""
    dims = {name: changes.get(name, value) for name, value in call.dims.items()}
    attributes = {name: changes.get(name, value) for name, value in call.attributes.items()}
    return replace(call, attributes=attributes, dims=dims)


@OPERATORS
@pytest.mark.parametrize("tokens", [1, 37])
def test_every_stage_passes_and_the_kernels_are_launched(driver: PluginDriver, call: PluginCall, tokens: int) -> None:
    call = changed(call, T=tokens)
    _, types, shapes, formats, size, configured, changed_shape, enqueued = driver.run(
        call, "types", "output_shapes", "formats", "workspace_size", "configure", "shape_change", "enqueue"
    )
    assert types["types"] == types["given"]
    assert shapes["shapes"] == [call.shape_of(tensor) for tensor in call.contract.outputs]
    assert all(formats["formats"])
    assert size["result"] == call.workspace_bytes
    for answer in (configured, changed_shape, enqueued):
        assert (answer["result"], answer["log"]) == (0, [])
    launches, expected = events_of(enqueued, "launch"), call.expected_launches()
    assert [launch["kernel"] for launch in launches] == [wanted["kernel"] for wanted in expected] != []
    for launch, wanted in zip(launches, expected, strict=True):
        declared = len(wanted["arguments"])
        assert launch["arguments"][:declared] == wanted["arguments"]
        assert all(argument == [8, 0] for argument in launch["arguments"][declared:])
        assert {key: launch[key] for key in ("grid", "block", "is_dependent")} == {
            key: wanted[key] for key in ("grid", "block", "is_dependent")
        }


@OPERATORS
def test_wrong_type_of_every_tensor_is_named(driver: PluginDriver, call: PluginCall) -> None:
    tensors = (*call.contract.inputs, *call.contract.outputs)
    for position, tensor in enumerate(tensors):
        wrong = "int32" if tensor.dtype != "int32" else "float8_e4m3fn"
        _, formats, configured = driver.run(replace(call, dtypes={tensor.name: wrong}), "formats", "configure")
        assert not formats["formats"][position]
        assert all(formats["formats"][:position])
        (line,) = configured["log"]
        assert line.startswith(f"{call.contract.onnx_type}: {tensor.name} is {wrong}")


@pytest.mark.parametrize("activation", ["float16", "float32"])
def test_product_without_an_activation_among_its_inputs_is_bfloat16(driver: PluginDriver, activation: str) -> None:
    given = replace(PRODUCT, activation=activation)
    _, types, formats, configured = driver.run(given, "types", "formats", "configure")
    _, bfloat16 = driver.run(PRODUCT, "types")
    assert types["types"] == bfloat16["given"] != types["given"]
    assert formats["formats"] == [True] * 4 + [False]
    assert configured["log"] == [f"BlockScaledLinear: y is {activation}; there are kernels for bfloat16"]


@OPERATORS
def test_serialized_attributes_make_the_same_plugin(driver: PluginDriver, call: PluginCall) -> None:
    """A contract without attributes and one without variants among them."""
    created, direct, serialized, again = driver.run(call, "enqueue", "serialize", "enqueue")
    assert (created["result"], serialized["result"]) == (1, 1)
    assert [name for name, _ in serialized["fields"]] == list(call.attributes)
    assert events_of(direct, "launch") == events_of(again, "launch") != []


@OPERATORS
@pytest.mark.parametrize("sm", [86, 89, 90])
def test_gpu_without_these_kernels_is_refused_with_those_that_have_them(
    driver: PluginDriver, call: PluginCall, sm: int
) -> None:
    _, refused = driver.run(call, "shape_change", sm=sm)
    assert refused["result"] != 0
    assert refused["log"] == [
        f"{call.contract.onnx_type}: no kernels for this GPU (sm_{sm}); they exist for sm_120, sm_121 alone"
    ]


@OPERATORS
def test_gpu_that_a_library_could_have_kernels_for_is_refused_with_how_to_get_them(
    driver: PluginDriver, call: PluginCall
) -> None:
    _, refused = driver.run(call, "shape_change", sm=121)
    assert refused["log"] == [
        f"{call.contract.onnx_type}: no kernels for this GPU (sm_121); supported are sm_{call.sm}; "
        "a library for others is built with SALA_ARCHITECTURES (docs/gpus.md)"
    ]


@pytest.mark.parametrize(
    "call",
    [
        changed(NORM, T=0),
        changed(NORM, columns=192),
        changed(PRODUCT, K=64),
        changed(PRODUCT, N=12),
        changed(PRODUCT_ADD, N=0),
        changed(PRODUCT_ADD, K=320),
    ],
)
def test_broken_rule_of_the_contract_reads_as_in_python(driver: PluginDriver, call: PluginCall) -> None:
    shapes = [call.shape_of(tensor) for tensor in call.contract.inputs]
    dtypes = [call.activation if tensor.dtype == ACTIVATION else tensor.dtype for tensor in call.contract.inputs]
    with pytest.raises(ShapeError) as raised:
        call.contract.bind(shapes, dtypes, call.attributes)
    _, answer = driver.run(call, "configure")
    assert answer["log"] == [str(raised.value)]


def test_gate_that_is_neither_on_nor_off_has_no_kernels(driver: PluginDriver) -> None:
    made = driver.create(changed(QUANTIZE, gated=2))
    assert made["log"] == ["BlockQuantize: no kernels for gated = 2; there are kernels for gated = 0; gated = 1"]
