"""Reads the log of a build. Without a GPU it is the only report of what is inside a plan.

The log has one record per message of TensorRT, `[SEVERITY] text`, where the text may go on over several lines.
The layer report is one message in a grammar of its own:

    Layers:
    Name: .., LayerType: .., Inputs: [ {tensor}, ..], Constants: [..], Outputs: [..], TacticName: .., Metadata: ..
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BuildError

PROCESS_OUTPUT = "OUTPUT"
"""Severity of what the build process wrote by itself, not through TensorRT's logger."""

SEVERITIES = (PROCESS_OUTPUT, "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

_RECORD = re.compile(rf"\[({'|'.join(SEVERITIES)})\] (.*)", re.DOTALL)
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?"
    r", Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>[^,]*), .*?Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\], .*?Datatype: (?P<dtype>\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_LIBRARY = re.compile(r"Adding plugin library (.*) to plan file for engines\.")
_SUBGRAPH = re.compile(r"_myl(\d+)_\d+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTensor:
    """A tensor that a fused layer reads or writes. A size of -1 is known only at run time."""

    name: str
    dtype: str
    """Type as TensorRT spells it, e.g. `BFloat16`."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLayer:
    """One layer of the built engine."""

    name: str
    type: str
    """TensorRT's layer type: `custom_layer` is a plugin, `gemm` and `runtime_fusion` products, `kgen` the rest."""
    profile: int
    onnx_nodes: tuple[str, ...]
    """Names of the graph's nodes that the layer computes."""
    inputs: tuple[LayerTensor, ...]
    """Tensors that the layer reads: activations, and weights that are inputs of the engine."""
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildLog:
    """The contents of the log of a successful build."""

    layers: tuple[FusedLayer, ...]
    activation_bytes: tuple[int, ...]
    """Scratch memory in bytes, by profile index."""
    constant_bytes: int
    """Bytes of the constants inside the plan, each layout counted. TensorRT calls them weights."""
    plugin_libraries: tuple[str, ...]
    """File names of the plugin libraries whose bytes are inside the plan."""


def records(text: str) -> Iterator[tuple[str, str]]:
    """Yield severity and text of every record of a log."""
    severity, lines = PROCESS_OUTPUT, list[str]()
    for line in text.splitlines():
        match = _RECORD.match(line)
        if match:
            if lines:
                yield severity, "\n".join(lines)
            severity, lines = match[1], []
        lines.append(match[2] if match else line)
    if lines:
        yield severity, "\n".join(lines)


def parse_build_log(path: Path, profiles: int) -> BuildLog:
    """Read the log of a successful build with this number of profiles.

    Raises: BuildError naming what is missing from the log, as may happen after an update of TensorRT.
    """
    messages = [text for _, text in records(path.read_text(encoding="utf-8", errors="replace"))]

    def sizes(subject: str, count: int) -> list[int]:
        pattern = re.compile(rf"{subject}: (\d+) bytes")
        found = [int(match[1]) for match in map(pattern.fullmatch, messages) if match]
        if len(found) != count:
            raise BuildError(f"{path}: expected {count} lines '{subject}: .. bytes', found {len(found)}: {_UNKNOWN}")
        return found

    reports = [message for message in messages if message.startswith("Layers:\n")]
    if len(reports) != 1:
        raise BuildError(f"{path}: expected one layer report, found {len(reports)}: {_UNKNOWN}")
    libraries = [_LIBRARY.fullmatch(message) for message in messages]
    return BuildLog(
        layers=_layers(path, reports[0]),
        activation_bytes=tuple(sizes("Total Activation Memory", profiles)),
        constant_bytes=sizes("Total Weights Memory", 1)[0],
        plugin_libraries=tuple(match[1] for match in libraries if match),
    )


_UNKNOWN = "this version of TensorRT logs in a form that sala-export does not know"


def _layers(path: Path, report: str) -> tuple[FusedLayer, ...]:
    section = report.partition("\n\n")[0].splitlines()[1:]
    matches = []
    for line in section:
        match = _LAYER.fullmatch(line)
        if not match:
            raise BuildError(f"{path}: cannot read the layer {line[:80]!r}: {_UNKNOWN}")
        matches.append(match)
    if not matches:
        raise BuildError(f"{path}: the layer report is empty: {_UNKNOWN}")
    profile_of = _subgraph_profiles(section)
    return tuple(
        FusedLayer(
            name=_unmarked(match["name"]),
            type=match["type"],
            profile=_profile(line, match["name"], profile_of),
            onnx_nodes=tuple(_unmarked(node) for node in _ONNX_NODE.findall(match["metadata"])),
            inputs=_tensors(match["inputs"]),
            constants=_tensors(match["constants"] or ""),
            outputs=_tensors(match["outputs"]),
        )
        for line, match in zip(section, matches, strict=True)
    )


def _subgraph_profiles(section: list[str]) -> dict[str, int]:
    """Profile of every compiled subgraph: the names of profile 0 bear no mark, and of the others not all do."""
    found: dict[str, int] = {}
    for line in section:
        subgraph, mark = _SUBGRAPH.search(line.split(", LayerType: ")[0]), _PROFILE.search(line)
        if subgraph:
            found[subgraph[1]] = max(found.get(subgraph[1], 0), int(mark[1]) if mark else 0)
    return found


def _profile(line: str, name: str, subgraph_profiles: dict[str, int]) -> int:
    subgraph, mark = _SUBGRAPH.search(name), _PROFILE.search(line)
    return subgraph_profiles[subgraph[1]] if subgraph else int(mark[1]) if mark else 0


def _unmarked(name: str) -> str:
    """A name without the mark of its profile."""
    return _PROFILE.sub("", name)


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(
            name=_unmarked(match["name"]),
            dtype=match["dtype"],
            shape=tuple(int(extent) for extent in match["dims"].split(",") if extent),
        )
        for match in _TENSOR.finditer(text)
    )
