"""Calls of plugins on a GPU, through the program `plugin_driver`, judged by the references in float64.

The program reads and writes the GPU's memory as files, so this file needs no CUDA of its own: only `PluginProgram.run`
needs a GPU, or the fake `libcuda.so.1` of tests/plugins/native.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sala_export.ops.common.contract import ACTIVATION
from sala_export.ops.infllmv2_attention import reference as sparse

from . import lightning_checks
from .findings import Finding
from .plugin_calls import PluginCall

Tensors = Mapping[str, Tensor]

POISON = 0xFF
"""Content of every byte that nobody wrote: NaN in all floating types."""
MARGIN = 1e-4
"""Relative margin at the cut above which fp32 must choose the blocks that exact arithmetic does."""
MOST_LEFT_OUT = 0.1
"""Share of the tokens whose output may be left out because they are within that margin."""
SPARSE_FLOOR = 1e-5
"""Error allowed beyond the roundings to the activation type, of the largest value (sparse_outcomes.py)."""
_TIMEOUT_SECONDS = 120


class PluginProgramError(Exception):
    """The program could not do what it was told, in one line."""


@dataclass(frozen=True, kw_only=True)
class PluginProgram:
    """`plugin_driver`, and the plugin library that it opens."""

    program: Path
    library: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of this process."""

    def obey(self, commands: Sequence[str]) -> list[Mapping[str, Any]]:
        """The answer to each command, none of which failed. Raises: PluginProgramError with the command and why."""
        try:
            done = subprocess.run(
                [self.program, self.library],
                input="\n".join(commands) + "\n",
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_SECONDS,
                env={**os.environ, **self.environment},
            )
        except subprocess.TimeoutExpired:
            raise PluginProgramError(f"{self.program.name} did not end within {_TIMEOUT_SECONDS} s") from None
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        for command, answer in zip(commands, answers, strict=False):
            if problem := _problem_of(command, answer):
                raise PluginProgramError(f"{command}: {problem}")
        if done.returncode != 0 or len(answers) != len(commands):
            following = commands[len(answers)] if len(answers) < len(commands) else "the end"
            raise PluginProgramError(
                f"{self.program.name} ended with code {done.returncode} at {following}: {done.stderr.strip()[-300:]}"
            )
        return answers

    def run(self, call: PluginCall, steps: Sequence[Tensors], *, is_captured: bool) -> Run:
        """Run `enqueue` once for each of `steps`, captured in a graph and replayed or called anew.

        The first step gives all inputs, later ones those that change. What the plugin may not read is poisoned before
        each run: the workspace, and outputs with a buffer of their own. Raises: PluginProgramError.
        """
        with tempfile.TemporaryDirectory(prefix="sala-plugin-gpu-") as name:
            folder = Path(name)
            commands = list(_commands(call, steps, folder, is_captured))
            answers = dict(zip(commands, self.obey(commands), strict=True))
            return Run(
                device=answers["device"],
                nodes=answers["capture"]["nodes"] if is_captured else None,
                results=[_results(call, folder, number) for number in range(len(steps))],
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What came back."""

    device: Mapping[str, Any]
    """The GPU's `name`, its architecture `sm`, and the `cuda_version` of its driver."""
    nodes: int | None
    """Of the captured graph."""
    results: Sequence[dict[str, Tensor]]
    """After each step: all outputs, and the inputs that they update."""


def named_file(option: str, value: str) -> Path:
    """The file that an option of the tests names. Raises: PluginProgramError if there is none."""
    path = Path(value).resolve()
    if not path.is_file():
        raise PluginProgramError(f"{option} {value}: there is no such file")
    return path


def _problem_of(command: str, answer: Mapping[str, Any]) -> str:
    """Why an answer is none; empty if it is one."""
    if "error" in answer:
        return str(answer["error"])
    is_creation = command.startswith("create ")
    if answer["result"] == (1 if is_creation else 0) or command == "workspace_size":
        return ""
    return "; ".join(answer["log"]) or f"result {answer['result']}"


def _buffer_of(call: PluginCall, name: str) -> str:
    """The buffer of a tensor: an output that updates an input may lie in its place."""
    for output in call.contract.outputs:
        if output.name == name and output.updates and call.is_in_place:
            return output.updates
    return name


def _commands(call: PluginCall, steps: Sequence[Tensors], folder: Path, is_captured: bool) -> Iterator[str]:
    contract = call.contract
    tensors = {tensor.name: tensor for tensor in (*contract.inputs, *contract.outputs)}
    own_outputs = [t.name for t in contract.outputs if _buffer_of(call, t.name) == t.name]
    yield "device"
    yield from call.creation()
    for name in (*(t.name for t in contract.inputs), *own_outputs):
        yield f"buffer {name} {call.bytes_of(tensors[name].dtype, call.shape_of(tensors[name]))}"
    yield f"buffer workspace {call.workspace_bytes}"
    yield from _tensor_commands(call)
    yield "shape_change"
    if is_captured:
        yield "capture"
    for number, step in enumerate(steps):
        for name, tensor in step.items():
            path = folder / f"{number}.{name}.in"
            path.write_bytes(_bytes_of(tensor))
            yield f"write {name} {path}"
        for name in ("workspace", *own_outputs):
            yield f"fill {name} {POISON}"
        yield from ["replay"] if is_captured else ["enqueue", "synchronize"]
        for name in _read_back(call):
            yield f"read {_buffer_of(call, name)} {folder / f'{number}.{name}.out'}"


def _tensor_commands(call: PluginCall) -> Iterator[str]:
    for kind, tensors in (("input", call.contract.inputs), ("output", call.contract.outputs)):
        for tensor in tensors:
            dtype = call.activation if tensor.dtype == ACTIVATION else tensor.dtype
            extents = " ".join(map(str, call.shape_of(tensor)))
            yield f"{kind} {dtype} {_buffer_of(call, tensor.name)} {extents}"
    yield "workspace workspace"


def _read_back(call: PluginCall) -> list[str]:
    outputs = call.contract.outputs
    return [*(t.name for t in outputs), *(t.updates for t in outputs if t.updates)]


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _results(call: PluginCall, folder: Path, number: int) -> dict[str, Tensor]:
    tensors = {tensor.name: tensor for tensor in (*call.contract.inputs, *call.contract.outputs)}
    results = {}
    for name in _read_back(call):
        tensor = tensors[name]
        dtype = getattr(torch, call.activation if tensor.dtype == ACTIVATION else tensor.dtype)
        content = bytearray((folder / f"{number}.{name}.out").read_bytes())
        results[name] = torch.frombuffer(content, dtype=dtype).reshape(tuple(call.shape_of(tensor)))
    return results


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Largest error, of the largest exact value; infinite if one of `actual` is."""
    if not actual.numel():
        return 0.0
    if not actual.isfinite().all():
        return math.inf
    return float((actual.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300))


def _same_bits(name: str, actual: Tensor, expected: Tensor) -> Finding:
    """Of two tensors of one type: infinite error where a single bit differs."""
    is_equal = _bytes_of(actual) == _bytes_of(expected)
    return Finding(tensor=name, error=0.0 if is_equal else math.inf, limit=0.0)


def findings_of(call: PluginCall, steps: Sequence[Tensors], run: Run) -> list[Finding]:
    """Of all steps. Each is judged from what the GPU held before it, so that errors do not add up."""
    judge = {"lightning_attention": lightning_findings, "infllmv2_attention": sparse_findings}[call.contract.name]
    updated = {t.name: t.updates for t in call.contract.outputs if t.updates}
    inputs: dict[str, Tensor] = {}
    findings = []
    for number, (step, results) in enumerate(zip(steps, run.results, strict=True)):
        inputs |= step
        found = judge(call, inputs, results)
        if call.is_in_place:
            inputs |= {old: results[new] for new, old in updated.items()}
        else:
            found += [_same_bits(old, results[old], inputs[old]) for old in updated.values()]
        findings += [replace(finding, tensor=f"step {number} {finding.tensor}") for finding in found]
    return findings


def lightning_findings(call: PluginCall, inputs: Tensors, results: Tensors) -> list[Finding]:
    """Of one run of LightningAttention; `inputs` as they were before it."""
    ordered = [inputs[tensor.name] for tensor in call.contract.inputs]
    return lightning_checks.findings(ordered, dict(call.attributes), lambda *_: dict(results))


def sparse_findings(call: PluginCall, inputs: Tensors, results: Tensors) -> list[Finding]:
    """Of one run of InfLLMv2Attention; `inputs` as they were before it.

    Keys and values must be the reference's to the bit, and what no token reaches must be untouched. Outputs are
    compared where rounding cannot change which blocks a token takes.
    """
    names = ("k_cache", "v_cache", "k1_cache", "k2_cache")
    caches = {name: inputs[name].clone() for name in names}
    lengths = inputs["past_length"], inputs["context_length"]
    # The caches in their own type: their rounding is part of the contract, that of the rest is not.
    y = sparse.infllmv2_attention(inputs["qkvg"].double(), *lengths, *caches.values(), **call.attributes)  # type: ignore[arg-type]
    findings = [_same_bits(f"{name}_out", results[f"{name}_out"], caches[name]) for name in names[:2]]
    eps = torch.finfo(results["y"].dtype).eps
    for name in names[2:]:
        findings.append(_window_finding(f"{name}_out", results[f"{name}_out"], caches[name], eps))
    for row in range(len(y)):
        is_sure = _sure_tokens(call, inputs, caches, row)
        error = relative_error(results["y"][row][is_sure], y[row][is_sure])
        findings.append(Finding(tensor=f"y[{row}]", error=error, limit=2 * eps + SPARSE_FLOOR))
        unsure = 1 - float(is_sure.double().mean())
        findings.append(Finding(tensor=f"tokens of y[{row}] left out", error=unsure, limit=MOST_LEFT_OUT))
    return findings


def _window_finding(name: str, actual: Tensor, expected: Tensor, eps: float) -> Finding:
    """Means are rounded once, of sums in any order; what holds no window stays NaN."""
    is_unused = expected.isnan()
    if not torch.equal(actual.isnan(), is_unused):
        return Finding(tensor=name, error=math.inf, limit=eps + SPARSE_FLOOR)
    error = relative_error(actual[~is_unused], expected[~is_unused].double())
    return Finding(tensor=name, error=error, limit=eps + SPARSE_FLOOR)


def _sure_tokens(call: PluginCall, inputs: Tensors, caches: Tensors, row: int) -> Tensor:
    """bool [T]: tokens that take the same blocks however scores are rounded; all of them in a dense call.

    `caches` are the reference's after the chunk.
    """
    attributes = call.attributes
    tokens, past = call.dims["T"], int(inputs["past_length"][row])
    if int(inputs["context_length"][row]) < attributes["dense_len"]:
        return torch.ones(tokens, dtype=torch.bool)
    heads, groups, width = (int(attributes[name]) for name in ("num_heads", "num_kv_heads", "head_dim"))
    q = inputs["qkvg"][row, :, : heads * width].double().reshape(tokens, groups, heads // groups, width)
    options = {
        name: attributes[name]
        for name in ("scale", "kernel_size", "kernel_stride", "block_size", "topk", "window_size", "init_blocks")
    }
    selection = sparse.select_blocks(
        q.permute(1, 2, 0, 3),
        caches["k1_cache"][row],
        caches["k2_cache"][row],
        torch.arange(past, past + tokens),
        **options,  # type: ignore[arg-type]
    )
    last = selection.score.masked_fill(~selection.taken, math.inf).amin(-1)
    refused = selection.score.masked_fill(selection.taken, -math.inf).amax(-1)
    return ((last == refused) | last.isinf() | ((last - refused) > MARGIN * last)).all(0)
