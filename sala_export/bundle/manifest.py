"""`bundle.json`: what a bundle is, what its engine takes and gives, and the hash of every file. See FORMAT.md."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..checkpoint.config import SalaConfig
from ..errors import BundleError, ConfigError
from ..specs import DType, FlavourName, Precision, TensorSpec

SCHEMA_VERSION = 4
MANIFEST_FILE = "bundle.json"
GRAPH_FOLDER = "graph"
ENGINE_FOLDER = "engine"
TEXT_FOLDER = "text"
_FLAVOURS = (FlavourName.RTX, FlavourName.TENSORRT)


class _Entry:
    """An object of the file. pydantic refuses a field that it does not have."""

    __slots__ = ()
    __pydantic_config__ = ConfigDict(extra="forbid")


def _malformed(what: str) -> BundleError:
    return BundleError(f"{MANIFEST_FILE}: {what} (build the bundle again)")


def _require_inside(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise BundleError(f"{MANIFEST_FILE} names the file {name!r}, which lies outside the bundle")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry(_Entry):
    """One file of the bundle, with size and hash."""

    path: str
    """Path relative to the bundle, with `/`. It never leads out of the bundle."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _require_inside(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry(_Entry):
    """The model, independent of precision and engine."""

    source: str
    """Hub id with revision, or the name of the checkpoint directory."""
    config: SalaConfig
    config_sha256: str
    """SHA-256 of the configuration, see `config_sha256`."""
    inv_freq: tuple[float, ...]
    """RoPE frequencies, each exactly an fp32 number. `rope_cos_sin` is made from fp32(position) * inv_freq."""
    fingerprint: str
    """Hash of configuration and weights, see `fingerprint`. States move between bundles where it and the precision are
    equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile(_Entry):
    """A safetensors file of the checkpoint, byte for byte."""

    path: str
    bytes: int

    def __post_init__(self) -> None:
        _require_inside(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry(_Entry):
    """A tensor of the checkpoint: little endian, row major, without gaps."""

    file: str
    offset: int
    """Bytes from the start of the file, not always a multiple of the element size."""
    bytes: int
    dtype: DType
    """Type as it is stored. Several codes of a four-bit weight share one number of this type."""
    shape: tuple[int, ...]
    sha256: str
    """SHA-256 of the tensor's bytes."""
    fixed: bool = False
    """True if the bytes are also in the engine or a graph. Weights that take its place must have the same hash."""

    def __post_init__(self) -> None:
        if self.offset < 0 or self.bytes < 0 or self.bytes != math.prod(self.shape) * self.dtype.bytes:
            raise _malformed(
                f"a tensor of {self.file} has offset {self.offset} and {self.bytes} bytes, which is not what "
                f"{self.dtype} {list(self.shape)} takes"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsEntry(_Entry):
    """The checkpoint's weights, which are in a bundle once and serve every runtime."""

    included: bool
    """False after `--no-weights`. Whoever runs the bundle then gives it weights of the same form."""
    files: tuple[WeightFile, ...]
    """The checkpoint's files, also if they are not included."""
    tensors: Mapping[str, TensorEntry]
    """Tensors by their names in the checkpoint. A tensor that no graph reads is not listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorEntry(_Entry):
    """One node of domain `sala` in the graph."""

    layer: int
    type: str
    node: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dequantization(_Entry):
    """The rule that turns codes into numbers: `code * scale * global_scale`, each block with its own scale.

    Codes by precision: fp8 is e4m3, int8 a signed byte, int4 a nibble that holds the code plus 8, nvfp4 a nibble of
    e2m1. The first of two nibbles is the low one. The scales are fp32, fp32, bf16 and e4m3.
    """

    precision: Precision
    columns: int
    """Number of elements in a row."""
    scale: str
    """Name of the tensor of scales. One of a single number holds for all; one of shape [blocks along the rows, blocks
    along the columns] holds a scale for each of so many equal blocks."""
    global_scale: float
    """Factor of all numbers, exactly an fp32 number."""

    def __post_init__(self) -> None:
        problems = {
            f"has the precision {self.precision}, which has no codes": not self.precision.is_quantized,
            f"has {self.columns} columns": self.columns < 1,
            f"has the global_scale {self.global_scale}": not 0 < self.global_scale < math.inf,
        }
        for problem, is_there in problems.items():
            if is_there:
                raise _malformed(f"a quantised part of a weight {problem}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPart(_Entry):
    """Consecutive elements of a weight input, from one tensor, in one of three forms.

    * Plain: the tensor's numbers, converted to the input's type. Where the input's type has codes (float8_e4m3fn,
      int8, float4_e2m1fn), the tensor's bytes as they are.
    * Scales, if `rows` is given: fp32, one for each of so many rows, from a tensor that holds as many or one for all;
      multiplied in fp32 by the single number of `factor`, if that is given.
    * Dequantised, if `dequantization` is given: the numbers that the tensor's codes stand for, fp32.
    """

    tensor: str
    rows: int | None = None
    factor: str | None = None
    dequantization: Dequantization | None = None

    def __post_init__(self) -> None:
        if (self.rows is not None and (self.rows < 1 or self.dequantization)) or (self.factor and self.rows is None):
            raise _malformed(
                f"the part {self.tensor} of a weight has rows {self.rows}, factor {self.factor!r} and a dequantization "
                "that do not go together"
            )

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors that the part is made from."""
        how = (self.dequantization.scale,) if self.dequantization else ()
        return (self.tensor, *((self.factor,) if self.factor else ()), *how)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightInput(_Entry):
    """A weight that a graph takes as an input, made of parts one after the other.

    If the input has shape [1], each part gives its one number, and they must agree.
    """

    spec: TensorSpec
    parts: tuple[WeightPart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuGraphEntry(_Entry):
    """The same step computed in fp32 by ONNX Runtime, whatever the precision of the engine.

    Its weights are inputs, so that a runtime converts the stored bytes once, packed, and no optimiser copies them.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[WeightInput, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEntry(_Entry):
    """The ONNX graph and the interface of its step, which is also the engine's."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorEntry, ...]
    cpu: CpuGraphEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(_Entry):
    """Smallest, tuned-for and largest value of a symbolic dimension."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise _malformed(f"engine.profiles: min {self.min}, opt {self.opt}, max {self.max} do not ascend")


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuEntry(_Entry):
    """A GPU that the engine was built for, and what fits on it."""

    recipe: str
    name: str
    compute_capability: str
    memory_bytes: int
    reserve_bytes: int
    """Bytes left to the CUDA context, kernels and other programs."""
    max_context: int
    """The longest context whose session fits beside the weights, at most the engine's own, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineEntry(_Entry):
    """The TensorRT engine: one plan of code alone, whose weights are inputs, for one compute capability or several."""

    plan: str
    """It carries the plugin library, that is native code: a runtime must allow engine host code, and a user must trust
    the bundle's origin."""
    report: str
    """File with what TensorRT reported while building: fused layers, types, memory."""
    log: str
    graph: str
    """File of the graph that the engine was built from. Its inputs are those of the step and then `weights`."""
    weights: tuple[WeightInput, ...]
    target: str
    """Name of the target that `--gpu` named."""
    gpus: tuple[GpuEntry, ...]
    """Known GPUs of the target. The engine serves every GPU of the same compute capabilities."""
    compute_capabilities: tuple[str, ...]
    tensorrt_flavour: str
    """`rtx` (TensorRT for RTX) or `tensorrt`. A plan runs only on its own flavour."""
    tensorrt_version: str
    plugin_library_sha256: str
    profiles: Mapping[str, Mapping[str, Range]]
    """Optimisation profiles in engine order: name -> symbolic dimension -> range."""
    device_memory_bytes: Mapping[str, int]
    """Bytes by part, at the largest capacity and chunk, without what a GPU reserves."""

    def __post_init__(self) -> None:
        if self.tensorrt_flavour not in _FLAVOURS:
            expected = ", ".join(_FLAVOURS)
            raise _malformed(f"engine.tensorrt_flavour is {self.tensorrt_flavour!r}, expected one of {expected}")
        if not self.compute_capabilities:
            raise _malformed("engine.compute_capabilities is empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest(_Entry):
    """The whole of `bundle.json`."""

    schema_version: int
    created_by: str
    model: ModelEntry
    precision: Precision
    weights: WeightsEntry
    graph: GraphEntry
    engine: EngineEntry
    text: tuple[str, ...]
    """Files of tokenizer, chat template and generation config. Empty if the bundle takes token ids only."""
    files: tuple[FileEntry, ...]
    """Every file of the bundle but this one and those of the weights, whose tensors have hashes of their own."""

    def __post_init__(self) -> None:
        if 2 * len(self.model.inv_freq) != self.model.config.head_dim:
            raise _malformed(f"model.inv_freq has {len(self.model.inv_freq)} numbers, expected head_dim / 2")
        self._check_tensors()

    def _check_tensors(self) -> None:
        """Tensors lie inside their files, and parts of weights name tensors."""
        sizes = {file.path: file.bytes for file in self.weights.files}
        for name, tensor in self.weights.tensors.items():
            if tensor.file not in sizes:
                raise _malformed(f"weights.tensors.{name} is in {tensor.file}, which is not among weights.files")
            if tensor.offset + tensor.bytes > sizes[tensor.file]:
                raise _malformed(f"weights.tensors.{name} ends behind the end of {tensor.file}")
        for weight in (*self.graph.cpu.weights, *self.engine.weights):
            for name in (name for part in weight.parts for name in part.tensors):
                if name not in self.weights.tensors:
                    raise _malformed(f"weight {weight.spec.name} needs {name}, which is not among weights.tensors")

    def needed_files(self) -> list[str]:
        """Every file that another field of the manifest names, those of the weights apart."""
        engine, graph = self.engine, self.graph
        return [engine.plan, engine.report, engine.log, engine.graph, graph.file, graph.cpu.file, *self.text]

    def to_json(self) -> str:
        """Write the manifest as the text of bundle.json."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse and check the text of a bundle.json. `where` names it in errors.

        Raises: BundleError naming the first wrong field, or the schema version if it is not this release's.
        """
        try:
            content = json.loads(text)
            version = content.get("schema_version")
        except (ValueError, AttributeError, RecursionError):
            raise BundleError(f"{where} is not a JSON object: the bundle is damaged, build it again") from None
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            hint = "update sala-export" if newer else f"build it again: {_rebuild_command(content)}"
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


def _rebuild_command(content: Mapping[str, Any]) -> str:
    """The command that builds the bundle of an older manifest again, as far as that tells what was asked for in words
    that mean nothing to a shell."""

    def told(default: str, *path: str) -> str:
        value: Any = content
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, str) and re.fullmatch(r"[\w@%+:,./-]+", value, re.ASCII) else default

    source = told("DIR_OR_HUB_ID", "model", "source").partition("@")[0]
    gpu, precision = told("GPU", "engine", "gpu"), told("bf16", "precision")
    return f"sala-export build --gpu {gpu} --model {source} --precision {precision}"


def config_sha256(config: SalaConfig) -> str:
    """Hash a configuration: SHA-256 over its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()


def fingerprint(config_hash: str, tensors: Mapping[str, str]) -> str:
    """Hash a model. Two bundles have the same fingerprint exactly if they hold the same model, in whatever files.

    It is SHA-256 over the line `config HASH` and then, in the order of their names, a line `NAME HASH` for each tensor.

    Args: `config_hash` is from `config_sha256`, `tensors` has SHA-256 by name.
    """
    lines = [f"config {config_hash}\n", *(f"{name} {tensors[name]}\n" for name in sorted(tensors))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
