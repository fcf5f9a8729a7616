"""What the plugins ask of the CUDA driver, against the Python reading of the same launches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.plugin_calls import LIGHTNING, SPARSE, STREAM, PluginCall, PluginDriver, events_of

from sala_export.ops.common.targets import AOT_ARCHITECTURES, serving_architecture
from sala_export.specs import ComputeCapability

OPERATORS = pytest.mark.parametrize("call", [LIGHTNING, SPARSE], ids=lambda call: call.contract.name)
TOKENS = pytest.mark.parametrize("tokens", [1, 2, 37, 1000])


def _with_tokens(call: PluginCall, tokens: int) -> PluginCall:
    return replace(call, dims={**call.dims, "T": tokens})


def _split_hidden(launch: dict[str, object], expected: dict[str, object]) -> tuple[list[object], list[object]]:
    """Arguments that the kernel declares, and those that the compiler added."""
    arguments, declared = launch["arguments"], expected["arguments"]
    assert isinstance(arguments, list)
    assert isinstance(declared, list)
    return arguments[: len(declared)], arguments[len(declared) :]


@OPERATORS
@TOKENS
@pytest.mark.parametrize("sm", AOT_ARCHITECTURES)
@pytest.mark.parametrize("activation", ["bfloat16", "float16"])
def test_enqueue_launches_what_the_kernel_set_says(
    driver: PluginDriver, call: PluginCall, tokens: int, sm: int, activation: str
) -> None:
    call = replace(_with_tokens(call, tokens), activation=activation)
    _, _, enqueued = driver.run(call, "shape_change", "enqueue", sm=sm)
    assert enqueued["result"] == 0, enqueued["log"]
    launches, expected = events_of(enqueued, "launch"), call.expected_launches(sm)
    assert len(launches) == len(expected)
    for launch, wanted in zip(launches, expected, strict=True):
        declared, hidden = _split_hidden(launch, wanted)
        assert declared == wanted["arguments"]
        assert hidden == [[8, 0], [8, 0]], "Triton's scratch pointers are null"
        assert {key: launch[key] for key in ("kernel", "grid", "block", "is_dependent")} == {
            key: wanted[key] for key in ("kernel", "grid", "block", "is_dependent")
        }
        assert (launch["sm"], launch["stream"]) == (sm, STREAM)


@OPERATORS
def test_head_dim_chooses_other_cubins(driver: PluginDriver, call: PluginCall) -> None:
    shared = {}
    for head_dim in (64, 128):
        _, _, enqueued = driver.run(call.with_attributes(head_dim=head_dim), "shape_change", "enqueue")
        assert enqueued["result"] == 0, enqueued["log"]
        shared[head_dim] = [launch["shared_bytes"] for launch in events_of(enqueued, "launch")]
    assert sum(shared[64]) < sum(shared[128])


@OPERATORS
@TOKENS
def test_shared_memory_above_48_kib_is_asked_for(driver: PluginDriver, call: PluginCall, tokens: int) -> None:
    _, prepared, enqueued = driver.run(
        _with_tokens(call, tokens).with_attributes(head_dim=128), "shape_change", "enqueue"
    )
    launched = {(launch["kernel"], launch["shared_bytes"]) for launch in events_of(enqueued, "launch")}
    large = {(kernel, shared_bytes) for kernel, shared_bytes in launched if shared_bytes > 48 * 1024}
    allowed = {(event["kernel"], event["bytes"]) for event in events_of(prepared, "allow_shared")}
    # A kernel whose grid is empty is made ready too.
    assert {(kernel, shared_bytes) for kernel, shared_bytes in allowed if kernel in dict(launched)} == large
    assert large or tokens == 1


@OPERATORS
def test_updates_in_one_buffer_are_not_copied(driver: PluginDriver, call: PluginCall) -> None:
    _, _, enqueued = driver.run(call, "shape_change", "enqueue")
    assert events_of(enqueued, "launch")
    assert not events_of(enqueued, "copy")


@OPERATORS
def test_updates_in_other_buffers_are_copied_before_any_launch(driver: PluginDriver, call: PluginCall) -> None:
    call = replace(call, is_in_place=False)
    _, _, enqueued = driver.run(call, "shape_change", "enqueue")
    tensors = {tensor.name: tensor for tensor in call.contract.inputs}
    expected = [
        {
            "event": "copy",
            "to": call.addresses[output.name],
            "from": call.addresses[output.updates],
            "bytes": call.bytes_of(output.dtype, call.shape_of(tensors[output.updates])),
            "stream": STREAM,
        }
        for output in call.contract.outputs
        if output.updates
    ]
    assert events_of(enqueued, "copy") == expected
    kinds = [event["event"] for event in enqueued["events"] if event["event"] in ("copy", "launch")]
    assert kinds == sorted(kinds)
    for launch, wanted in zip(events_of(enqueued, "launch"), call.expected_launches(), strict=True):
        assert _split_hidden(launch, wanted)[0] == wanted["arguments"], "kernels work on the outputs"


@OPERATORS
def test_kernels_are_loaded_before_enqueue_and_once(driver: PluginDriver, call: PluginCall) -> None:
    # A CUDA graph capture, which only sees enqueue, must not load anything.
    _, prepared, first, second, destroyed = driver.run(call, "shape_change", "enqueue", "enqueue", "destroy")
    loaded = [event["kernel"] for event in events_of(prepared, "load")]
    assert loaded == [launch.name for launch in call.sequence]
    # A driver that loads lazily may leave even a loaded module's functions to the first launch.
    assert [event["kernel"] for event in events_of(prepared, "load_function")] == loaded
    assert not events_of(prepared, "get_attribute")
    for enqueued in (first, second):
        assert {event["event"] for event in enqueued["events"]} == {"launch"}
    assert sorted(event["kernel"] for event in events_of(destroyed, "unload")) == sorted(loaded)


@OPERATORS
def test_drivers_without_function_loading_are_asked_for_an_attribute(
    cuda_12_0_driver: PluginDriver, call: PluginCall
) -> None:
    _, prepared, enqueued = cuda_12_0_driver.run(call, "shape_change", "enqueue")
    asked = [event["kernel"] for event in events_of(prepared, "get_attribute")]
    assert asked == [launch.name for launch in call.sequence]
    assert {event["event"] for event in enqueued["events"]} == {"launch"}


def test_launches_wait_for_each_other_on_drivers_whose_graphs_hold_no_dependent_ones(
    driver: PluginDriver, cuda_12_0_driver: PluginDriver
) -> None:
    call = _with_tokens(LIGHTNING, 1)
    for program, is_dependent in ((driver, True), (cuda_12_0_driver, False)):
        _, _, enqueued = program.run(call, "shape_change", "enqueue", sm=90)
        assert [launch["is_dependent"] for launch in events_of(enqueued, "launch")] == [is_dependent]


@OPERATORS
def test_clone_of_a_context_launches_the_same(driver: PluginDriver, call: PluginCall) -> None:
    call = _with_tokens(call, 37 if call is LIGHTNING else 1)  # counters, which neither takes, are a context's own
    _, first, _, second = driver.run(call, "enqueue", "clone", "enqueue")
    assert events_of(first, "launch") == events_of(second, "launch") != []


@OPERATORS
@pytest.mark.parametrize(
    ("sm", "served_by"),
    [(75, None), (80, None), (86, 86), (87, None), (88, 86), (89, 89), (90, 90), (100, None), (120, 120), (121, None)],
)
def test_gpu_is_served_as_the_python_package_says(
    driver: PluginDriver, call: PluginCall, sm: int, served_by: int | None
) -> None:
    _, _, enqueued = driver.run(call, "shape_change", "enqueue", sm=sm)
    launched = {launch["sm"] for launch in events_of(enqueued, "launch")}
    assert launched == ({served_by} if served_by else set())
    assert serving_architecture(ComputeCapability(*divmod(sm, 10)), AOT_ARCHITECTURES) == served_by


# 121: code made for exactly sm_120 does not run there. 80: code for 86 needs at least 86. 87: a Tegra takes its own.
@OPERATORS
@pytest.mark.parametrize("sm", [75, 80, 87, 121])
@pytest.mark.parametrize("action", ["shape_change", "enqueue"])
def test_unsupported_gpu_is_refused_with_those_that_are(
    driver: PluginDriver, call: PluginCall, sm: int, action: str
) -> None:
    _, refused = driver.run(call, action, sm=sm)
    assert refused["result"] != 0
    supported = ", ".join(f"sm_{known}" for known in AOT_ARCHITECTURES)
    assert refused["log"] == [
        f"{call.contract.onnx_type}: no kernels for this GPU (sm_{sm}); supported are {supported}; "
        "a library for others is built with SALA_ARCHITECTURES (docs/gpus.md)"
    ]
    assert not refused["events"]


@OPERATORS
def test_misaligned_buffer_is_refused(driver: PluginDriver, call: PluginCall) -> None:
    name = call.contract.inputs[0].name
    _, refused = driver.run(replace(call, misaligned=name), "enqueue")
    assert refused["result"] != 0
    assert refused["log"] == [f"{call.contract.onnx_type}: {name} is at an address that is not a multiple of 16"]
    assert not events_of(refused, "launch")


@OPERATORS
def test_null_workspace_is_refused(driver: PluginDriver, call: PluginCall) -> None:
    _, _, refused = driver.run(call, "workspace 0", "enqueue")
    assert refused["result"] != 0
    assert refused["log"] == [
        f"{call.contract.onnx_type}: the workspace is null, {call.workspace_bytes} bytes are needed"
    ]
    assert not events_of(refused, "launch")
