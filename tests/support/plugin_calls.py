"""Calls of plugins outside TensorRT: what to ask for, how to run it, and what the launches must then be."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sala_export.installation import plugin_library
from sala_export.ops.common.contract import ACTIVATION, Contract, Tensor
from sala_export.ops.common.expr import evaluate
from sala_export.ops.common.launch import KernelSet, Launch, Workspace
from sala_export.ops.common.targets import AOT_ARCHITECTURES
from sala_export.ops.kernel_sets import KERNEL_SETS
from sala_export.ops.registry import (
    BLOCK_QUANTIZE,
    BLOCK_SCALED_LINEAR,
    BLOCK_SCALED_LINEAR_ADD,
    INFLLMV2_ATTENTION,
    LIGHTNING_ATTENTION,
    RMS_NORM_BLOCK_QUANTIZE,
)

Answer = Mapping[str, Any]

STREAM = 0x5712EA3
"""What the driver program gives as the stream."""
COUNTERS = 1 << 44
"""Where the fake driver of that program makes its first buffer: that of the counters."""
_BUFFER_BYTES = 1 << 32
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1, "int32": 4}


@dataclass(frozen=True, kw_only=True)
class PluginCall:
    """One call of an operator with made-up device addresses."""

    contract: Contract
    attributes: Mapping[str, int | float]
    dims: Mapping[str, int]
    activation: str = "bfloat16"
    integer_command: str = "int"
    """How integer attributes are handed over: `int` as an engine file does, `int32` as an ONNX parser does."""
    is_in_place: bool = True
    """Whether an output that updates an input is given that input's buffer."""
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Shapes of single tensors that differ from the contract's."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Types of single tensors that differ from the contract's."""
    misaligned: str | None = None
    """A tensor to put 8 bytes after where it belongs."""

    @property
    def kernel_set(self) -> KernelSet:
        return KERNEL_SETS[self.contract.name]

    @property
    def sm(self) -> int:
        """The first architecture that the library has kernels of this operator for."""
        launches = self.kernel_set.launches
        return next(sm for sm in AOT_ARCHITECTURES if all(sm in launch.tiles for launch in launches))

    @property
    def sequence(self) -> tuple[Launch, ...]:
        """The launches that serve the call, those with nothing to do for its sizes included."""
        return self.kernel_set.decode if self.dims["T"] == 1 else self.kernel_set.prefill

    @property
    def names(self) -> dict[str, int]:
        """Dimensions and integer attributes."""
        return {**{k: v for k, v in self.attributes.items() if isinstance(v, int)}, **self.dims}

    @property
    def addresses(self) -> dict[str, int]:
        """Of every input, output, workspace and counter, by name."""
        tensors = (*self.contract.inputs, *self.contract.outputs)
        addresses = {tensor.name: (i + 1) * _BUFFER_BYTES for i, tensor in enumerate(tensors)}
        for output in self.contract.outputs:
            if output.updates and self.is_in_place:
                addresses[output.name] = addresses[output.updates]
        start = (len(tensors) + 1) * _BUFFER_BYTES
        for first, buffers in ((start, self.kernel_set.workspaces), (COUNTERS, self.kernel_set.counters)):
            start = first
            for buffer in buffers:
                addresses[buffer.name] = start
                start += self._buffer_bytes(buffer)
        return addresses

    @property
    def workspace_bytes(self) -> int:
        """Of all workspaces together."""
        return sum(map(self._buffer_bytes, self.kernel_set.workspaces))

    @property
    def counter_bytes(self) -> int:
        """Of all counters together."""
        return sum(map(self._buffer_bytes, self.kernel_set.counters))

    def _buffer_bytes(self, buffer: Workspace) -> int:
        """Rounded up to 256 bytes."""
        sizes = {**self.kernel_set.constants, **self.names}
        size = self.bytes_of(buffer.dtype, [evaluate(extent, sizes) for extent in buffer.shape])
        return -(-size // 256) * 256

    def bytes_of(self, dtype: str, shape: Sequence[int]) -> int:
        return _BYTES[self.activation if dtype == ACTIVATION else dtype] * int(np.prod(shape, dtype=np.int64))

    def shape_of(self, tensor: Tensor) -> Sequence[int]:
        return self.shapes.get(tensor.name, [evaluate(extent, self.names) for extent in tensor.shape])

    def with_attributes(self, **changes: int | float) -> PluginCall:
        return replace(self, attributes={**self.attributes, **changes})

    def creation(self) -> list[str]:
        """Commands that make the plugin; the last one is answered with 1 if there is one now."""
        commands = [
            f"{self.integer_command if isinstance(value, int) else 'float'} {name} {value!r}"
            for name, value in self.attributes.items()
        ]
        return [*commands, f"create {self.contract.onnx_type}"]

    def tensors(self) -> Iterator[str]:
        """Commands that name the tensors and the workspace."""
        for kind, tensors in (("input", self.contract.inputs), ("output", self.contract.outputs)):
            for tensor in tensors:
                dtype = self.dtypes.get(tensor.name, self.activation if tensor.dtype == ACTIVATION else tensor.dtype)
                extents = " ".join(map(str, self.shape_of(tensor)))
                address = self.addresses[tensor.name] + (8 if tensor.name == self.misaligned else 0)
                yield f"{kind} {dtype} {address} {extents}"
        yield f"workspace {(len(self.contract.inputs) + len(self.contract.outputs) + 1) * _BUFFER_BYTES}"

    def expected_launches(self, sm: int | None = None) -> list[dict[str, Any]]:
        """Kernel, grid, threads and arguments of every launch, and whether it is dependent, from the `KernelSet`.

        A launch whose grid is empty for these sizes is none. Without an architecture that of `sm` is taken.
        """
        sm = sm or self.sm
        addresses = self.addresses
        for output in self.contract.outputs:
            if output.updates:
                addresses[output.updates] = addresses[output.name]
        expected = []
        for launch in self.sequence:
            arguments = []
            for parameter in launch.kernel.params:
                if parameter.is_constexpr:
                    continue
                name = parameter.name
                if name.endswith("_ptr"):
                    arguments.append([8, addresses[name.removesuffix("_ptr")]])
                elif isinstance(value := {**self.attributes, **self.dims}[name], float):
                    arguments.append([4, int(np.float32(value).view(np.uint32))])
                else:
                    arguments.append([4, value % 2**32])
            sizes = {**self.kernel_set.compile_time(launch, sm, self.names), **self.names}
            grid = [evaluate(extent, sizes) for extent in launch.grid]
            if 0 in grid:
                continue
            expected.append(
                {
                    "kernel": launch.name,
                    "grid": grid,
                    "block": [32 * launch.tiles[sm].num_warps, 1, 1],
                    "is_dependent": launch.is_dependent(sm),
                    "arguments": arguments,
                }
            )
        return expected


LIGHTNING = PluginCall(
    contract=LIGHTNING_ATTENTION,
    attributes={"num_heads": 4, "head_dim": 64, "eps": 1e-6, "scale": 0.125},
    dims={"B": 2, "T": 37},
)
SPARSE = PluginCall(
    contract=INFLLMV2_ATTENTION,
    attributes={
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 64,
        "scale": 0.125,
        "kernel_size": 32,
        "kernel_stride": 16,
        "block_size": 64,
        "topk": 5,
        "window_size": 128,
        "init_blocks": 1,
        "dense_len": -1,
    },
    dims={"B": 2, "T": 37, "C": 1003, "C1": 61, "C2": 14},
)
BLOCK_SCALED = (
    PluginCall(contract=BLOCK_QUANTIZE, attributes={"columns": 384, "gated": 1}, dims={"B": 2, "T": 37}),
    PluginCall(contract=RMS_NORM_BLOCK_QUANTIZE, attributes={"columns": 384, "eps": 1e-6}, dims={"B": 2, "T": 37}),
    PluginCall(contract=BLOCK_SCALED_LINEAR, attributes={}, dims={"B": 2, "T": 37, "K": 384, "N": 136}),
    PluginCall(
        contract=BLOCK_SCALED_LINEAR_ADD, attributes={"factor": 0.25}, dims={"B": 2, "T": 37, "K": 384, "N": 136}
    ),
)


@dataclass(frozen=True)
class PluginDriver:
    """The program of `tests/plugins/native`, which plays TensorRT on a fake CUDA driver."""

    program: Path

    def create(self, call: PluginCall) -> Answer:
        """The answer to making the plugin of the call."""
        return self._obey(call.creation())[-1]

    def run(self, call: PluginCall, *actions: str, sm: int | None = None) -> list[Answer]:
        """Make the plugin of the call, then obey `actions`; returns the answer to `create` and those to the actions."""
        setup = [f"sm {sm or call.sm}", *call.tensors(), *call.creation()]
        return self._obey([*setup, *actions])[len(setup) - 1 :]

    def _obey(self, commands: Sequence[str]) -> list[Answer]:
        completed = subprocess.run(
            [self.program, plugin_library()],
            input="\n".join(commands),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return [json.loads(line) for line in completed.stdout.splitlines()]


def events_of(answer: Answer, kind: str) -> list[dict[str, Any]]:
    """What was asked of the CUDA driver, of one kind."""
    return [event for event in answer["events"] if event["event"] == kind]
