"""Counters of the plugins: zero before the first launch, own to every execution context, and freed with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.plugin_calls import COUNTERS, LIGHTNING, SPARSE, STREAM, Answer, PluginCall, PluginDriver, events_of


def decoding(call: PluginCall, batch: int = 2) -> PluginCall:
    return replace(call, dims={**call.dims, "B": batch, "T": 1})


# One counts the programs of decode, the other the scratch that those of prefill have.
CALLS = pytest.mark.parametrize("call", [decoding(LIGHTNING), SPARSE], ids=lambda call: call.contract.name)


def made(answer: Answer) -> list[tuple[int, int]]:
    """Address and bytes of every new allocation."""
    return [(event["address"], event["bytes"]) for event in events_of(answer, "allocate")]


def freed(answer: Answer) -> list[int]:
    return [event["address"] for event in events_of(answer, "free")]


def counted_in(answer: Answer, call: PluginCall) -> set[int]:
    """Where the first counter of the operator is, as its launches have it."""
    name = f"{call.kernel_set.counters[0].name}_ptr"
    arguments: set[int] = set()
    launches = {launch.name: launch for launch in call.sequence}
    for event in events_of(answer, "launch"):
        launch = launches[event["kernel"]]
        declared = [p.name for p in launch.kernel.params if not p.is_constexpr]
        if name in declared:
            arguments.add(event["arguments"][declared.index(name)][1])
    return arguments


def refusal(call: PluginCall) -> list[str]:
    return [f"{call.contract.onnx_type}: no counters for these shapes on this device; onShapeChange must come first"]


@CALLS
def test_counters_are_zero_for_every_stream_before_enqueue(driver: PluginDriver, call: PluginCall) -> None:
    _, prepared, again, enqueued = driver.run(call, "shape_change", "shape_change", "enqueue")
    about_memory = ("allocate", "create_stream", "fill", "synchronize", "destroy_stream", "free")
    events = [event for event in prepared["events"] if event["event"] in about_memory]
    assert [event["event"] for event in events] == list(about_memory[:-1])
    assert made(prepared) == [(COUNTERS, call.counter_bytes)]
    (filled,) = events_of(prepared, "fill")
    assert (filled["address"], filled["bytes"], filled["value"]) == (COUNTERS, call.counter_bytes, 0)
    assert {event["stream"] for event in events[1:]} == {filled["stream"]}
    assert filled["stream"] not in (0, STREAM), "the default stream waits for others, and theirs may be captured"
    assert not again["events"]
    assert {event["event"] for event in enqueued["events"]} == {"launch"}
    assert counted_in(enqueued, call) == {COUNTERS}


@CALLS
def test_enqueue_without_counters_is_refused_and_allocates_nothing(driver: PluginDriver, call: PluginCall) -> None:
    _, refused = driver.run(call, "enqueue")
    assert refused["result"] != 0
    assert refused["log"] == refusal(call)
    assert not made(refused)
    assert not events_of(refused, "launch")


@CALLS
def test_every_execution_context_has_its_own(driver: PluginDriver, call: PluginCall) -> None:
    _, first, cloned, refused, second, enqueued, destroyed = driver.run(
        call, "shape_change", "clone", "enqueue", "shape_change", "enqueue", "destroy"
    )
    (before,), (after,) = made(first), made(second)
    assert before != after
    assert freed(cloned) == [before[0]], "the driver program keeps one plugin"
    assert refused["log"] == refusal(call)
    assert counted_in(enqueued, call) == {after[0]}
    assert freed(destroyed) == [after[0]]


def test_counters_grow_and_a_captured_graph_keeps_the_old_ones(driver: PluginDriver) -> None:
    call, larger = decoding(LIGHTNING), decoding(LIGHTNING, 300)
    assert larger.counter_bytes > call.counter_bytes
    _, small, *answers = driver.run(
        call, "shape_change", "forget", *larger.tensors(), "enqueue", "shape_change", "enqueue", "destroy"
    )
    refused, grown, enqueued, destroyed = answers[-4:]
    assert refused["log"] == refusal(call)
    (old, _), (new, bytes_now) = *made(small), *made(grown)
    assert old != new
    assert bytes_now == larger.counter_bytes
    assert not freed(grown), "an earlier graph counts in the old ones"
    assert counted_in(enqueued, larger) == {new}
    assert freed(destroyed) == [old, new]


@CALLS
def test_each_device_has_its_own(driver: PluginDriver, call: PluginCall) -> None:
    _, first, _, refused, second, there, _, back, destroyed = driver.run(
        call, "shape_change", "context 1", "enqueue", "shape_change", "enqueue", "context 0", "enqueue", "destroy"
    )
    assert refused["log"] == refusal(call)
    devices = [event["device"] for answer in (first, second) for event in events_of(answer, "allocate")]
    assert devices == [0, 1]
    addresses = [made(answer)[0][0] for answer in (first, second)]
    assert [counted_in(back, call), counted_in(there, call)] == [{address} for address in addresses]
    assert freed(destroyed) == addresses, "each in its own context: the driver refuses others"


@CALLS
@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("cuMemAlloc", "cuMemAlloc of {bytes} bytes of counters: "),
        ("cuStreamCreate", "cuStreamCreate for counters: "),
        ("cuMemsetD8Async", "cuMemsetD8Async of counters: "),
        ("cuStreamSynchronize", "cuStreamSynchronize for counters: "),
    ],
)
def test_failure_is_named_and_leaves_nothing(driver: PluginDriver, call: PluginCall, function: str, told: str) -> None:
    _, _, failed, refused, prepared, destroyed = driver.run(
        call, f"fail {function}", "shape_change", "enqueue", "shape_change", "destroy"
    )
    assert failed["result"] != 0
    (line,) = failed["log"]
    assert line.startswith(told.format(bytes=call.counter_bytes))
    assert freed(failed) == [address for address, _ in made(failed)]
    assert len(events_of(failed, "create_stream")) == len(events_of(failed, "destroy_stream"))
    assert refused["log"] == refusal(call)
    assert prepared["result"] == 0, "counters can still be made, so a capture is let again"
    assert freed(destroyed) == [address for address, _ in made(prepared)]


@pytest.mark.parametrize("call", [LIGHTNING, decoding(SPARSE)], ids=lambda call: call.contract.name)
def test_sequence_without_counters_makes_none(driver: PluginDriver, call: PluginCall) -> None:
    _, prepared, enqueued, destroyed = driver.run(call, "shape_change", "enqueue", "destroy")
    assert enqueued["result"] == 0
    events: list[Any] = [*prepared["events"], *enqueued["events"], *destroyed["events"]]
    assert not {event["event"] for event in events} & {"allocate", "free", "create_stream"}
