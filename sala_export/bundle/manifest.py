"""`bundle.json`: what a bundle is, what its engine takes and gives, and the hash of every file. See FORMAT.md."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..checkpoint.config import SalaConfig
from ..errors import BundleError, ConfigError
from ..specs import DType, Precision, TensorSpec, stream_name

SCHEMA_VERSION = 3
MANIFEST_FILE = "bundle.json"
GRAPH_FOLDER = "graph"
ENGINE_FOLDER = "engine"
TEXT_FOLDER = "text"
FLAVOURS = ("rtx", "tensorrt")
"""TensorRT for RTX, TensorRT."""

_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file."""

    __pydantic_config__ = _CLOSED

    path: str
    """Relative to the bundle, with `/`; never leads out of it."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise BundleError(f"{MANIFEST_FILE} names the file {self.path!r}, which lies outside the bundle")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """The model, independent of precision and engine."""

    __pydantic_config__ = _CLOSED

    source: str
    """Hub id with revision, or the name of the checkpoint directory."""
    config: SalaConfig
    inv_freq: tuple[float, ...]
    """RoPE frequencies, each exactly an fp32 number; `rope_cos_sin` is made from fp32(position) * inv_freq."""
    fingerprint: str
    """SHA-256 over config and weight files: states move between bundles where it and the precision are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorEntry:
    """One node of domain `sala` in the graph."""

    __pydantic_config__ = _CLOSED

    layer: int
    type: str
    node: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dequantization:
    """How the codes of a weight part become numbers: `code * scale * global_scale`, each block with its own scale.

    Codes by precision: fp8 is e4m3, int8 a signed byte, int4 a nibble that holds the code plus 8, nvfp4 a nibble of
    e2m1; the first of two nibbles is the low one.
    """

    __pydantic_config__ = _CLOSED

    precision: Precision
    columns: int
    """Elements of a row."""
    scale: WeightPart
    """Scales of the blocks, row by row."""
    scale_shape: tuple[int, int]
    """Blocks along the rows and along the columns; they divide both evenly."""
    global_scale: float
    """Exactly an fp32 number."""

    def __post_init__(self) -> None:
        problems = {
            f"has the precision {self.precision}, which has no codes": not self.precision.is_quantized,
            f"has {self.columns} columns": self.columns < 1,
            f"has the scale_shape {list(self.scale_shape)}": min(self.scale_shape) < 1,
            "has scales that are codes themselves": self.scale.dequantization is not None,
            f"has the global_scale {self.global_scale}": not 0 < self.global_scale < math.inf,
        }
        for problem, is_there in problems.items():
            if is_there:
                raise BundleError(f"{MANIFEST_FILE}: a quantised part of a weight {problem} (build the bundle again)")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPart:
    """Consecutive elements of a weight, as they lie in a safetensors file: little endian, row major."""

    __pydantic_config__ = _CLOSED

    file: str
    offset: int
    """Bytes; not always a multiple of the element size."""
    bytes: int
    dtype: DType
    """As it is stored: several elements of a four-bit weight share one number of this type."""
    dequantization: Dequantization | None = None

    def __post_init__(self) -> None:
        if self.offset < 0 or self.bytes < 0:
            raise BundleError(
                f"{MANIFEST_FILE}: a part of a weight has offset {self.offset} and {self.bytes} bytes, expected no "
                "negative number (build the bundle again)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightInput:
    """A weight that the CPU graph takes as an input: its parts, converted to the input's type, one after the other."""

    __pydantic_config__ = _CLOSED

    spec: TensorSpec
    parts: tuple[WeightPart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuGraphEntry:
    """The same step computed in fp32 by ONNX Runtime, whatever the precision of the engine.

    Its weights are inputs, so that a runtime converts the stored bytes once, packed, and no optimiser copies them.
    """

    __pydantic_config__ = _CLOSED

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[WeightInput, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEntry:
    """The ONNX graph and its interface, which is also the engine's."""

    __pydantic_config__ = _CLOSED

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorEntry, ...]
    weights_included: bool
    """False after `--no-weights`: the graph is there for reading, only the engine can run."""
    weights: tuple[FileEntry, ...]
    """The safetensors files that the graphs' weights lie in, whether included or not: the checkpoint's, and what an
    export of a quantised checkpoint had to write once more."""
    cpu: CpuGraphEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Smallest, tuned-for and largest value of a symbolic dimension."""

    __pydantic_config__ = _CLOSED

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise BundleError(
                f"{MANIFEST_FILE}: engine.profiles: min {self.min}, opt {self.opt}, max {self.max} do not ascend "
                "(build the bundle again)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One plan: consecutive layers. The first also embeds the token ids, the last also gives the logits.

    Between shards the residual stream travels as `hidden_states.{layer}` [batch, tokens, hidden_size], where `layer` is
    the first of the shard that takes it: an output of one shard and, by the same name, an input of the next.
    """

    __pydantic_config__ = _CLOSED

    plan: str
    report: str
    """What TensorRT reported while building: fused layers, types, memory."""
    log: str
    first_layer: int
    num_layers: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    plugin_library_serialized: bool
    """The plan carries the plugin library, that is native code: a runtime must allow engine host code, and a user
    must trust the bundle's origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineEntry:
    """The TensorRT engine, for exactly one compute capability, as one plan or several that run one after the other."""

    __pydantic_config__ = _CLOSED

    shards: tuple[ShardEntry, ...]
    """In order of layers; together every layer once."""
    gpu: str
    gpu_name: str
    compute_capability: str
    tensorrt_flavour: str
    """`rtx` (TensorRT for RTX) or `tensorrt`; a plan runs only on its own."""
    tensorrt_version: str
    plugin_library_sha256: str
    profiles: Mapping[str, Mapping[str, Range]]
    """Optimisation profiles in engine order: name -> symbolic dimension -> range."""
    device_memory_bytes: Mapping[str, int]
    """By part, at the largest capacity and chunk: weights are the sum of the shards', activations the largest."""

    def __post_init__(self) -> None:
        if self.tensorrt_flavour not in FLAVOURS:
            raise BundleError(
                f"{MANIFEST_FILE}: engine.tensorrt_flavour is {self.tensorrt_flavour!r}, expected one of "
                f"{', '.join(FLAVOURS)} (build the bundle again)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole of `bundle.json`."""

    __pydantic_config__ = _CLOSED

    schema_version: int
    created_by: str
    model: ModelEntry
    precision: Precision
    graph: GraphEntry
    engine: EngineEntry
    text: tuple[str, ...]
    """Tokenizer, chat template and generation config, as found in the checkpoint; empty: token ids only."""
    files: tuple[FileEntry, ...]
    """Every file of the bundle but this one."""

    def __post_init__(self) -> None:
        layers = [shard.first_layer + i for shard in self.engine.shards for i in range(shard.num_layers)]
        if layers != list(range(self.model.config.num_hidden_layers)) or not all(
            shard.num_layers > 0 for shard in self.engine.shards
        ):
            cut = ", ".join(f"{shard.num_layers} from {shard.first_layer}" for shard in self.engine.shards)
            raise BundleError(
                f"{MANIFEST_FILE}: engine.shards hold the layers {cut or 'none'}, expected each of "
                f"{self.model.config.num_hidden_layers} once and in order (build the bundle again)"
            )
        for before, after in itertools.pairwise(self.engine.shards):
            name = stream_name(after.first_layer)
            given = [spec for spec in before.outputs if spec.name == name]
            if not given or given != [spec for spec in after.inputs if spec.name == name]:
                raise BundleError(
                    f"{MANIFEST_FILE}: engine.shards: {after.plan} does not take the {name} that {before.plan} gives "
                    "(build the bundle again)"
                )
        if any(shard.plugin_library_serialized for shard in self.engine.shards[1:]):
            raise BundleError(
                f"{MANIFEST_FILE}: engine.shards: only the first shard may carry the plugin library (build the bundle "
                "again)"
            )
        if 2 * len(self.model.inv_freq) != self.model.config.head_dim:
            raise BundleError(
                f"{MANIFEST_FILE}: model.inv_freq has {len(self.model.inv_freq)} numbers, expected head_dim / 2 "
                "(build the bundle again)"
            )
        self._check_parts()

    def _check_parts(self) -> None:
        """The parts of the CPU graph's weights lie inside their files."""
        if not self.graph.weights_included:
            return
        sizes = {entry.path: entry.bytes for entry in self.files}
        for weight in self.graph.cpu.weights:
            for part in weight.parts:
                if part.file in sizes and part.offset + part.bytes > sizes[part.file]:
                    raise BundleError(
                        f"{MANIFEST_FILE}: weight {weight.spec.name} ends behind the end of {part.file} (build the "
                        "bundle again)"
                    )

    def needed_files(self) -> list[str]:
        """Every file that another field of the manifest names."""
        graph = self.graph
        named = [name for shard in self.engine.shards for name in (shard.plan, shard.report, shard.log)]
        named += [graph.file, graph.cpu.file, *self.text]
        if graph.weights_included:
            named += [entry.path for entry in graph.weights]
            parts = [part for weight in graph.cpu.weights for part in weight.parts]
            named += [part.file for part in parts]
            named += [part.dequantization.scale.file for part in parts if part.dequantization]
        return named

    def to_json(self) -> str:
        """The text of bundle.json."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse and check the text of a bundle.json; `where` names it in errors.

        Raises: BundleError naming the first wrong field, or the schema version if it is not this release's.
        """
        try:
            version = json.loads(text).get("schema_version")
        except (ValueError, AttributeError, RecursionError):
            raise BundleError(f"{where} is not a JSON object: the bundle is damaged, build it again") from None
        if version != SCHEMA_VERSION:
            hint = "update sala-export" if isinstance(version, int) and version > SCHEMA_VERSION else "build it again"
            raise BundleError(f"{where} has schema_version {version!r}, this release reads {SCHEMA_VERSION}: {hint}")
        try:
            return _ADAPTER.validate_json(text)
        except ConfigError as error:
            raise BundleError(f"{where}: model.config: {error} (build the bundle again)") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{where}: {field}: {first['msg']} (build the bundle again)") from None


_ADAPTER = TypeAdapter(Manifest)


def fingerprint(config: SalaConfig, weights: tuple[FileEntry, ...]) -> str:
    """SHA-256 that two bundles share iff they hold the same model."""
    content = {"config": asdict(config), "weights": sorted(entry.sha256 for entry in weights)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
