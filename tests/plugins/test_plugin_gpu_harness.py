"""What stands between tests/plugins/test_plugin_gpu.py and a GPU, tried without one.

The program that uses a real GPU opens a `libcuda.so.1` that has memory, streams and graphs, but whose kernels compute
nothing. What a GPU would compute is played by the references in the activation type.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.findings import Finding, failed
from support.plugin_calls import LIGHTNING, SPARSE, PluginCall
from support.plugin_gpu import (
    PluginProgram,
    PluginProgramError,
    Run,
    findings_of,
    named_file,
)
from support.plugin_gpu_cases import (
    GpuCase,
    lightning_case,
    lightning_decode,
    lightning_prefill,
    sparse_case,
    sparse_decode,
    sparse_prefill,
)
from torch import Tensor

from sala_export.installation import onnxruntime_operators, plugin_library
from sala_export.ops.infllmv2_attention.reference import infllmv2_attention
from sala_export.ops.lightning_attention.reference import lightning_attention

Results = dict[str, Tensor]

SPARSE_ATTRIBUTES = {**SPARSE.attributes, "dense_len": 300}
LIGHTNING_DECODE = lightning_case(1, steps=3, head_dim=64, attributes=LIGHTNING.attributes)
# From the last token back, so that caches which are not updated hold the past of every step.
SPARSE_DECODE = sparse_case(1, [(641, 41), (640, 40), (37, 5)], head_dim=64, attributes=SPARSE_ATTRIBUTES)
LIGHTNING_PREFILL = lightning_case(37, head_dim=64, attributes=LIGHTNING.attributes)
SPARSE_PREFILL = sparse_case(70, [(700, 60)], head_dim=64, attributes=SPARSE_ATTRIBUTES)
CASES = [LIGHTNING_DECODE, SPARSE_DECODE, LIGHTNING_PREFILL, SPARSE_PREFILL]


def with_own_outputs(case: GpuCase) -> GpuCase:
    return replace(case, call=replace(case.call, is_in_place=False))


@pytest.fixture(scope="module")
def program(native_build: Path) -> PluginProgram:
    """On a GPU that computes nothing."""
    return PluginProgram(
        program=native_build / "plugin_driver",
        library=plugin_library(),
        environment={"LD_LIBRARY_PATH": str(native_build / "cuda_memory")},
    )


def run_recorded(program: PluginProgram, case: GpuCase, folder: Path, *, is_captured: bool) -> tuple[Run, list[Any]]:
    """The run, and what was asked of the CUDA driver."""
    events = folder / "events.json"
    recording = replace(program, environment={**program.environment, "FAKE_CUDA_EVENTS": str(events)})
    run = recording.run(case.call, case.steps, is_captured=is_captured)
    return run, json.loads(events.read_text())


def launches_of(events: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in event.items() if name != "event"} for event in events if event["event"] == kind
    ]


# --- The program ------------------------------------------------------------------------------------------------------


def test_machine_without_a_driver_is_told_in_one_line(program: PluginProgram, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()  # found before any real one
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [program.program, program.library],
        input="device\n",
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["error"].startswith("there is no NVIDIA driver: ")


@pytest.mark.parametrize(
    ("commands", "problem"),
    [
        (["jump"], "there is no command jump"),
        (["create Attention"], "the library has no plugin Attention"),
        (["enqueue"], "there is no plugin: create one first"),
        (["replay"], "there is no graph: capture one first"),
        (["buffer"], "a command needs the name of a buffer"),
        (["buffer x"], "a command needs a number of bytes"),
        (["buffer x 16", "buffer x 16"], "there is a buffer x already"),
        (["fill x 0"], "there is no buffer x"),
        (["input float32 x 4"], "there is no buffer x"),
        (["buffer x 16", "input float8 x 4"], "there is no type float8"),
        (["buffer x 16", "write x"], "a command needs a path"),
        (["buffer x 16", "write x /nowhere/x"], "/nowhere/x: cannot be read"),
        (["buffer x 16", "read x /nowhere/x"], "/nowhere/x: cannot be written"),
        (["buffer x 0"], "cuMemAlloc of 0 for x: CUDA_ERROR_INVALID_VALUE (1): invalid argument"),
    ],
)
def test_what_cannot_be_done_is_one_line(program: PluginProgram, commands: list[str], problem: str) -> None:
    with pytest.raises(PluginProgramError) as raised:
        program.obey(commands)
    assert str(raised.value) == f"{commands[-1]}: {problem}"


@pytest.mark.parametrize(
    ("failure", "command", "problem"),
    [
        ("cuInit=100", "device", "cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        ("cuMemAlloc=2", "buffer qkvz ", "cuMemAlloc of 151552 for qkvz: CUDA_ERROR_OUT_OF_MEMORY (2)"),
        ("cuStreamBeginCapture=901", "capture", "cuStreamBeginCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED (901)"),
        ("cuStreamEndCapture=901", "capture", "cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED (901)"),
        ("cuGraphInstantiateWithFlags=999", "capture", "cuGraphInstantiateWithFlags: unknown CUDA error (999)"),
        ("cuGraphLaunch=700", "replay", "cuGraphLaunch: CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
        ("cuStreamSynchronize=700", "write qkvz ", "write of qkvz: CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
    ],
)
def test_errors_of_cuda_are_named_with_the_command(
    program: PluginProgram, failure: str, command: str, problem: str
) -> None:
    failing = replace(program, environment={**program.environment, "FAKE_CUDA_FAIL": failure})
    # Not decode, whose plugin asks the driver for some of that itself.
    with pytest.raises(PluginProgramError) as raised:
        failing.run(LIGHTNING_PREFILL.call, LIGHTNING_PREFILL.steps, is_captured=True)
    assert str(raised.value).startswith(command)
    assert f": {problem}: " in str(raised.value)


def test_file_of_another_size_is_refused(program: PluginProgram, tmp_path: Path) -> None:
    path = tmp_path / "fifteen"
    path.write_bytes(bytes(15))
    with pytest.raises(PluginProgramError, match=r"fifteen holds 15 bytes, buffer x 16$"):
        program.obey(["buffer x 16", f"write x {path}"])


def test_library_without_plugins_is_refused(program: PluginProgram) -> None:
    with pytest.raises(PluginProgramError, match=r"libsala_ort\.so is no plugin library of TensorRT$"):
        replace(program, library=onnxruntime_operators()).obey(["device"])


def test_bytes_go_to_the_gpu_and_come_back(program: PluginProgram, tmp_path: Path) -> None:
    there, back, filled = (tmp_path / name for name in ("there", "name with blanks", "filled"))
    there.write_bytes(bytes(range(100)))
    commands = ["buffer x 100", "buffer y 3", f"write x {there}", "fill y 255", f"read x {back}", f"read y {filled}"]
    program.obey(commands)
    assert back.read_bytes() == bytes(range(100))
    assert filled.read_bytes() == b"\xff\xff\xff"


def test_unsupported_gpu_is_refused_in_the_plugins_words(program: PluginProgram) -> None:
    old = replace(program, environment={**program.environment, "FAKE_CUDA_SM": "75"})
    with pytest.raises(
        PluginProgramError, match=r"^shape_change: LightningAttention: no kernels for this GPU \(sm_75\)"
    ):
        old.run(LIGHTNING_DECODE.call, LIGHTNING_DECODE.steps, is_captured=True)


def test_options_name_files_that_exist(tmp_path: Path) -> None:
    assert named_file("--plugin-driver", __file__) == Path(__file__)
    with pytest.raises(PluginProgramError, match=r"^--plugin-driver \S+/nothing: there is no such file$"):
        named_file("--plugin-driver", str(tmp_path / "nothing"))


# --- What it asks of the driver ---------------------------------------------------------------------------------------


def placed_arguments(case: GpuCase, events: Sequence[Mapping[str, Any]], sm: int) -> list[dict[str, Any]]:
    """The expected launches; their made-up addresses are replaced by those of `events`, which must agree everywhere."""
    expected = case.call.expected_launches(sm)
    placed: dict[int, int] = {}
    for wanted, launch in zip(expected, events, strict=True):
        for i, (size, value) in enumerate(wanted["arguments"]):
            if size == 8:
                wanted["arguments"][i][1] = placed.setdefault(value, launch["arguments"][i][1])
    assert len(set(placed.values())) == len(placed), "two tensors share a buffer"
    return expected


@pytest.mark.parametrize("is_in_place", [True, False])
@pytest.mark.parametrize("case", [LIGHTNING_DECODE, SPARSE_DECODE], ids=lambda case: case.call.contract.name)
def test_every_replay_launches_what_was_captured(
    program: PluginProgram, tmp_path: Path, case: GpuCase, is_in_place: bool
) -> None:
    case = case if is_in_place else with_own_outputs(case)
    run, events = run_recorded(program, case, tmp_path, is_captured=True)
    captured, replayed = launches_of(events, "captured_launch"), launches_of(events, "launch")
    assert replayed == captured * len(case.steps)
    copies = launches_of(events, "captured_copy")
    assert launches_of(events, "copy") == copies * len(case.steps)
    assert run.nodes == len(captured) + len(copies)
    assert not launches_of(events, "leak")
    assert len(copies) == (0 if is_in_place else sum(bool(tensor.updates) for tensor in case.call.contract.outputs))
    for launch, wanted in zip(captured, placed_arguments(case, captured, sm=90), strict=True):
        *declared, scratch, profile = launch["arguments"]
        assert (declared, scratch, profile) == (wanted["arguments"], [8, 0], [8, 0])
        assert (launch["kernel"], launch["grid"], launch["block"]) == (
            wanted["kernel"],
            wanted["grid"],
            wanted["block"],
        )


@pytest.mark.parametrize("case", [LIGHTNING_PREFILL, SPARSE_PREFILL], ids=lambda case: case.call.contract.name)
def test_shared_memory_is_asked_for_before_the_first_launch(
    program: PluginProgram, tmp_path: Path, case: GpuCase
) -> None:
    _, events = run_recorded(program, case, tmp_path, is_captured=False)
    kinds = [event["event"] for event in events]
    launched = launches_of(events, "launch")
    large = {launch["kernel"] for launch in launched if launch["shared_bytes"] > 48 * 1024}
    allowed = {event["kernel"] for event in launches_of(events, "allow_shared")}
    # A kernel whose grid is empty is made ready too.
    assert allowed & {launch["kernel"] for launch in launched} == large != set()
    assert max(i for i, kind in enumerate(kinds) if kind == "allow_shared") < kinds.index("launch")


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.call.contract.name)
def test_updates_elsewhere_start_as_copies_and_outputs_as_poison(program: PluginProgram, case: GpuCase) -> None:
    case = with_own_outputs(case)
    run = program.run(case.call, case.steps, is_captured=True)
    for results in run.results:
        assert results["y"].isnan().all()
        for output in case.call.contract.outputs:
            if output.updates:
                before = case.steps[0][output.updates]
                assert torch.equal(results[output.name].nan_to_num(), before.nan_to_num())
                assert torch.equal(results[output.updates].nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.contract.name}-{case.call.dims['T']}")
def test_gpu_that_computes_nothing_is_found_out(program: PluginProgram, case: GpuCase) -> None:
    run = program.run(case.call, case.steps, is_captured=case.call.dims["T"] == 1)
    assert (run.device["name"], run.device["sm"]) == ("Fake GPU", 90)
    assert "step 0 y" in failed(findings_of(case.call, case.steps, run))


# --- How results are judged -------------------------------------------------------------------------------------------


def computed(call: PluginCall, inputs: Mapping[str, Tensor]) -> Results:
    """What a GPU without a fault gives: the reference in the activation type."""
    ordered = [inputs[tensor.name].clone() for tensor in call.contract.inputs]
    if call.contract.name == "lightning_attention":
        y, state = lightning_attention(*ordered, **call.attributes)  # type: ignore[arg-type]
        return {"y": y, "state_out": state}
    y = infllmv2_attention(*ordered, **call.attributes)  # type: ignore[arg-type]
    names = ("k_cache_out", "v_cache_out", "k1_cache_out", "k2_cache_out")
    return {"y": y, **dict(zip(names, ordered[3:], strict=True))}


def played(case: GpuCase, compute: Callable[[PluginCall, Mapping[str, Tensor]], Results] = computed) -> list[Finding]:
    """The findings on a GPU that computes with `compute`."""
    inputs: dict[str, Tensor] = {}
    all_results = []
    for step in case.steps:
        inputs |= step
        results = compute(case.call, inputs)
        updated = {t.updates: results[t.name] for t in case.call.contract.outputs if t.updates}
        if case.call.is_in_place:
            inputs |= updated
        all_results.append({**results, **{name: inputs[name] for name in updated}})
    return findings_of(case.call, case.steps, Run(device={}, nodes=None, results=all_results))


@pytest.mark.parametrize("is_in_place", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.contract.name}-{case.call.dims['T']}")
def test_right_results_pass(case: GpuCase, is_in_place: bool) -> None:
    assert not failed(played(case if is_in_place else with_own_outputs(case)))


@pytest.mark.parametrize(
    "case",
    [lightning_prefill(), sparse_prefill(), lightning_decode(), sparse_decode()],
    ids=lambda case: f"{case.call.contract.name}-{case.call.dims['T']}",
)
def test_right_results_of_the_gpu_tests_pass(case: GpuCase) -> None:
    assert not failed(played(case))


def _changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[PluginCall, Mapping[str, Tensor]], Results]:
    def compute(call: PluginCall, inputs: Mapping[str, Tensor]) -> Results:
        results = computed(call, inputs)
        return {**results, name: change(results[name].clone())}

    return compute


def _with_inputs(**changes: Callable[[Tensor], Tensor]) -> Callable[[PluginCall, Mapping[str, Tensor]], Results]:
    def compute(call: PluginCall, inputs: Mapping[str, Tensor]) -> Results:
        return computed(call, {**inputs, **{name: change(inputs[name]) for name, change in changes.items()}})

    return compute


def _with_attributes(**changes: int) -> Callable[[PluginCall, Mapping[str, Tensor]], Results]:
    return lambda call, inputs: computed(call.with_attributes(**changes), inputs)


def _one_wrong(x: Tensor) -> Tensor:
    x.view(-1)[7] += 0.2 * x.nan_to_num().abs().max()
    return x


def _last_poisoned(x: Tensor) -> Tensor:
    x.view(-1)[-1] = float("nan")
    return x


def _last_written(x: Tensor) -> Tensor:
    x.view(-1)[-1] = 0
    return x


@pytest.mark.parametrize(
    ("case", "compute", "tensor"),
    [
        (LIGHTNING_DECODE, _changed("y", _one_wrong), "step 0 y"),
        (LIGHTNING_DECODE, _changed("y", _last_poisoned), "step 0 y"),
        (LIGHTNING_DECODE, _changed("state_out", _one_wrong), "step 0 state_out"),
        # The graph goes on with the first token, or from the first state.
        (LIGHTNING_DECODE, _with_inputs(qkvz=lambda _: LIGHTNING_DECODE.steps[0]["qkvz"]), "step 1 y"),
        (LIGHTNING_DECODE, _with_inputs(state=lambda _: LIGHTNING_DECODE.steps[0]["state"]), "step 1 y"),
        (LIGHTNING_PREFILL, _with_inputs(o_norm=lambda x: x.flip(-1)), "step 0 y"),
        (SPARSE_PREFILL, _changed("y", _last_poisoned), "step 0 y[1]"),
        (SPARSE_PREFILL, _changed("k_cache_out", _last_written), "step 0 k_cache_out"),
        (SPARSE_PREFILL, _changed("v_cache_out", _one_wrong), "step 0 v_cache_out"),
        (SPARSE_PREFILL, _changed("k1_cache_out", _one_wrong), "step 0 k1_cache_out"),
        (SPARSE_PREFILL, _changed("k2_cache_out", _last_written), "step 0 k2_cache_out"),
        (SPARSE_PREFILL, _with_attributes(topk=4), "step 0 y[0]"),
        (SPARSE_PREFILL, _with_attributes(dense_len=10_000), "step 0 y[0]"),
        # The graph goes on at the position at which it was captured.
        (
            SPARSE_DECODE,
            _with_inputs(past_length=lambda _: SPARSE_DECODE.steps[0]["past_length"]),
            "step 1 k_cache_out",
        ),
    ],
)
def test_planted_faults_are_found(
    case: GpuCase, compute: Callable[[PluginCall, Mapping[str, Tensor]], Results], tensor: str
) -> None:
    wrong = [finding.tensor for finding in played(case, compute) if not finding.passed]
    assert wrong
    assert wrong[0] == tensor


def test_inputs_that_the_plugin_must_keep_are_watched() -> None:
    case = with_own_outputs(LIGHTNING_PREFILL)
    results = computed(case.call, case.steps[0])
    touched = Run(device={}, nodes=None, results=[{**results, "state": results["state_out"]}])
    assert failed(findings_of(case.call, case.steps, touched)) == "step 0 state: error inf, limit 0"
