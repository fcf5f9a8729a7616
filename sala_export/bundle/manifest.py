"""`bundle.json`: what a bundle is, what its engine takes and gives, and the hash of every file. See FORMAT.md."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer

from ..checkpoint.config import SalaConfig, SparseConfig
from ..errors import BundleError, ConfigError, RequestError
from ..specs import BUILT_PRECISIONS, CpuMath, DType, FlavourName, Precision, TensorSpec
from .step_rules import config_problems, spec_problems, step_problems
from .values import Extent, Fp32, Natural, PathInside, Positive, Sha256, Shape, parse

SCHEMA_VERSION = 6
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry(_Entry):
    """One file of the bundle, with size and hash."""

    path: PathInside
    bytes: Natural
    sha256: Sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry(_Entry):
    """The model, independent of precision and engine."""

    source: str
    """Hub id with revision, or the name of the checkpoint directory."""
    config: SalaConfig
    config_sha256: Sha256
    """SHA-256 of the configuration, see `config_sha256`."""
    inv_freq: tuple[Fp32, ...]
    """RoPE frequencies, each exactly an fp32 number. `rope_cos_sin` is made from fp32(position) * inv_freq."""
    fingerprint: Sha256
    """Hash of configuration and weights, see `fingerprint`. States move between bundles where it and the precision are
    equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile(_Entry):
    """A safetensors file of the checkpoint, byte for byte."""

    path: PathInside
    bytes: Natural


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry(_Entry):
    """A tensor of the checkpoint: little endian, row major, without gaps."""

    file: str
    offset: Natural
    """Bytes from the start of the file, not always a multiple of the element size."""
    bytes: Natural
    dtype: DType
    """Type as it is stored. Several codes of a four-bit weight share one number of this type."""
    shape: Shape
    sha256: Sha256
    """SHA-256 of the tensor's bytes."""
    fixed: bool = False
    """True if the bytes are also in the engine or a graph. Weights that take its place must have the same hash."""

    def __post_init__(self) -> None:
        if self.bytes != math.prod(self.shape) * self.dtype.bytes:
            raise _malformed(
                f"a tensor of {self.file} has {self.bytes} bytes, which is not what {self.dtype} {list(self.shape)} "
                "takes"
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

    layer: Natural
    type: str
    node: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPart(_Entry):
    """Consecutive elements of a weight input, from one tensor, in one of two forms.

    * Plain: the tensor's numbers, converted to the input's type. Where the input's type has codes (float8_e4m3fn,
      float4_e2m1fn and integers), the tensor's bytes as they are.
    * Scales, if `rows` is given: fp32, one for each of so many rows, from a tensor that holds as many or one for all;
      multiplied in fp32 by the single number of `factor`, if that is given.
    """

    tensor: str
    rows: Positive | None = None
    factor: str | None = None

    def __post_init__(self) -> None:
        if (self.factor is not None and self.rows is None) or self.factor == "":
            raise _malformed(
                f"the part {self.tensor} of a weight has rows {self.rows}, factor {self.factor!r}, which do not go "
                "together"
            )

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors that the part is made from."""
        return (self.tensor, *((self.factor,) if self.factor else ()))


class WeightLayout(StrEnum):
    """Ways in which the parts of a weight input fill it other than one after the other."""

    WORD_COLUMNS = "word_columns"
    """int32 [columns, rows], of parts uint8 [its rows, 4 * columns]. Four neighbouring bytes of a row are a word, the
    first in its low bits, and the words of one place in all rows of all parts lie side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightInput(_Entry):
    """A weight that a graph takes as an input, made of parts one after the other unless `layout` says otherwise.

    If the input has shape [1], each part gives its one number, and they must agree.
    """

    spec: TensorSpec
    parts: tuple[WeightPart, ...]
    layout: WeightLayout | None = None
    """Written only where it is given."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise _malformed(f"weight {self.spec.name} has no parts")
        for problem in spec_problems(self.spec, {}):
            raise _malformed(f"weight {problem}")

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.layout is None:
            del fields["layout"]
        return fields

    def layout_problems(self, tensors: Mapping[str, TensorEntry]) -> Iterator[str]:
        """What keeps the tensors of the parts, all of which `tensors` has, from lying as `layout` says."""
        if self.layout is not WeightLayout.WORD_COLUMNS:
            return
        name, shape, stored = self.spec.name, self.spec.shape, [tensors[part.tensor] for part in self.parts]
        if self.spec.dtype is not DType.INT32 or len(shape) != 2:
            yield f"weight {name} is {self.spec.dtype} {list(shape)}, word columns are an int32 matrix"
            return
        columns, rows = (int(extent) for extent in shape)
        for part, tensor in zip(self.parts, stored, strict=True):
            is_bytes = tensor.dtype is DType.UINT8 and len(tensor.shape) == 2 and part.rows is None
            if not is_bytes or tensor.shape[1] != 4 * columns:
                scales = "" if part.rows is None else ", as scales of rows"
                yield (
                    f"weight {name} has word columns of uint8 {[rows, 4 * columns]}, of which {part.tensor} cannot be "
                    f"rows: it is {tensor.dtype} {list(tensor.shape)}{scales}"
                )
                return
        if (given := sum(tensor.shape[0] for tensor in stored)) != rows:
            yield f"weight {name} has word columns of {rows} rows, its tensors have {given}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuStepEntry(_Entry):
    """A graph of the step for ONNX Runtime on the CPU."""

    file: PathInside
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuGraphEntry(_Entry):
    """The same step in two graphs for ONNX Runtime on the CPU, which take the same weights as inputs."""

    weights: tuple[WeightInput, ...]
    """Those of products are single tensors as they are stored, so that a runtime can map them from their files."""
    exact: CpuStepEntry
    """All in fp32, whatever the precision of the engine."""
    fast: CpuStepEntry
    """Products of rounded inputs. Its caches are those of an engine, so that states move between the two."""

    def steps(self) -> dict[CpuMath, CpuStepEntry]:
        """The graphs by their arithmetic."""
        return {CpuMath.EXACT: self.exact, CpuMath.FAST: self.fast}


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEntry(_Entry):
    """The ONNX graph and the interface of its step, which is also the engine's."""

    file: PathInside
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorEntry, ...]
    cpu: CpuGraphEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(_Entry):
    """Smallest, tuned-for and largest value of a symbolic dimension."""

    min: Extent
    opt: Extent
    max: Extent

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise _malformed(f"engine.profiles: min {self.min}, opt {self.opt}, max {self.max} do not ascend")


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuEntry(_Entry):
    """A GPU that the engine was built for, and what fits on it."""

    recipe: str
    name: str
    compute_capability: str
    memory_bytes: Natural
    reserve_bytes: Natural
    """Bytes left to the CUDA context, kernels and other programs."""
    max_context: Natural
    """The longest context whose session fits beside the weights, at most the engine's own, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineEntry(_Entry):
    """The TensorRT engine: one plan of code alone, whose weights are inputs, for one compute capability or several."""

    plan: PathInside
    """It carries the plugin library, that is native code: a runtime must allow engine host code, and a user must trust
    the bundle's origin."""
    report: PathInside
    """File with what TensorRT reported while building: fused layers, types, memory."""
    log: PathInside
    graph: PathInside
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
    plugin_library_sha256: Sha256
    profiles: Mapping[str, Mapping[str, Range]]
    """Optimisation profiles in engine order: name -> symbolic dimension -> range."""
    device_memory_bytes: Mapping[str, Natural]
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
    engine: EngineEntry | None
    """None in a bundle for CPUs alone."""
    text: tuple[PathInside, ...]
    """Files of tokenizer, chat template and generation config. Empty if the bundle takes token ids only."""
    files: tuple[FileEntry, ...]
    """Every file of the bundle but this one and those of the weights, whose tensors have hashes of their own."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise _malformed(problem)

    def _problems(self) -> Iterator[str]:
        """What several fields say together, and cannot be."""
        for problem in config_problems(self.model.config):
            yield f"model.config: {problem}"
        if 2 * len(self.model.inv_freq) != self.model.config.head_dim:
            yield f"model.inv_freq has {len(self.model.inv_freq)} numbers, expected head_dim / 2"
        if self.precision not in BUILT_PRECISIONS:
            yield f"precision is {self.precision}, which no bundle has"
        yield from self._file_problems()
        yield from self._tensor_problems()
        yield from self._step_problems()
        yield from self._profile_problems()

    def _step_problems(self) -> Iterator[str]:
        """The graphs are steps of the model, and their weights inputs beside those."""
        graph, engine_type = self.graph, self.precision.dtype
        steps = (
            ("graph", graph, engine_type),
            ("graph.cpu.exact", graph.cpu.exact, DType.FLOAT32),
            ("graph.cpu.fast", graph.cpu.fast, engine_type),
        )
        for name, part, dtype in steps:
            for problem in step_problems(self.model.config, part.inputs, part.outputs, dtype):
                yield f"{name}: {problem}"
        for part in graph.cpu.steps().values():
            yield from self._weight_problems(part.inputs, graph.cpu.weights)
        yield from self._weight_problems(graph.inputs, self.engine.weights if self.engine else ())

    def _file_problems(self) -> Iterator[str]:
        """Every file is listed once, and those that other fields name are listed."""
        listed = {file.path for file in self.files}
        for name in self.needed_files():
            if name not in listed:
                yield f"it needs {name!r}, which is not among files"
        if len(listed | {file.path for file in self.weights.files}) != len(self.files) + len(self.weights.files):
            yield "files and weights.files have one file twice"

    def _tensor_problems(self) -> Iterator[str]:
        """Tensors lie inside their files."""
        sizes = {file.path: file.bytes for file in self.weights.files}
        for name, tensor in self.weights.tensors.items():
            if tensor.file not in sizes:
                yield f"weights.tensors.{name} is in {tensor.file}, which is not among weights.files"
            elif tensor.offset + tensor.bytes > sizes[tensor.file]:
                yield f"weights.tensors.{name} ends behind the end of {tensor.file}"

    def _weight_problems(self, inputs: Sequence[TensorSpec], weights: Sequence[WeightInput]) -> Iterator[str]:
        """Weights have names of their own, name tensors, and have no more rows than all weights have bytes."""
        names = {spec.name for spec in inputs} | {weight.spec.name for weight in weights}
        if len(names) != len(inputs) + len(weights):
            yield "two inputs of a graph have one name"
        most_rows = sum(file.bytes for file in self.weights.files)
        for name, part in ((weight.spec.name, part) for weight in weights for part in weight.parts):
            for tensor in part.tensors:
                if tensor not in self.weights.tensors:
                    yield f"weight {name} needs {tensor}, which is not among weights.tensors"
            if part.rows is not None and part.rows > most_rows:
                yield f"weight {name} has {part.rows} rows, more than all weights have bytes"
        for weight in weights:
            yield from weight.layout_problems(self.weights.tensors)

    def _profile_problems(self) -> Iterator[str]:
        """Both profiles give each symbolic dimension of the step its range."""
        if self.engine is None:
            return
        symbols = {size for spec in self.graph.inputs for size in spec.shape if isinstance(size, str)} - {"batch"}
        for name in ("prefill", "decode"):
            if missing := symbols - self.engine.profiles.get(name, {}).keys():
                yield f"engine.profiles.{name} has no {min(missing)}"

    def require_engine(self) -> EngineEntry:
        """The engine, for what needs one. Raises: RequestError if the bundle is for CPUs alone."""
        if self.engine is None:
            raise RequestError(
                "the bundle was built for CPUs and has no TensorRT engine: build a bundle with an engine, for example "
                "with sala-export build --gpu rtx"
            )
        return self.engine

    def needed_files(self) -> list[str]:
        """Every file that another field of the manifest names, those of the weights apart."""
        engine, graph = self.engine, self.graph
        cpu = [step.file for step in graph.cpu.steps().values()]
        built = [engine.plan, engine.report, engine.log, engine.graph] if engine else []
        return [*built, graph.file, *cpu, *self.text]

    def to_json(self) -> str:
        """Write the manifest as the text of bundle.json."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse and check the text of a bundle.json. `where` names it in errors.

        Raises: BundleError naming the first wrong field, or the schema version if it is not this release's.
        """
        try:
            content = parse(text if isinstance(text, bytes) else text.encode())
            version = content.get("schema_version")
        except (ValueError, AttributeError, RecursionError):
            raise BundleError(f"{where} is not a JSON object: the bundle is damaged, build it again") from None
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            hint = "update sala-export" if newer else f"build it again: {_rebuild_command(content)}"
            raise BundleError(f"{where} has schema_version {version!r}, this release reads {SCHEMA_VERSION}: {hint}")
        try:
            manifest = _ADAPTER.validate_json(text, strict=True)
        except ConfigError as error:
            raise BundleError(f"{where}: model.config: {error} (build the bundle again)") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            raise BundleError(f"{where}: {field}: {problem} (build the bundle again)") from None
        given = content["model"]["config"]["sparse_config"].keys()
        if missing := [name for name in SparseConfig.__slots__ if name not in given]:
            raise BundleError(f"{where}: model.config.sparse_config.{missing[0]} is missing (build the bundle again)")
        return manifest


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
