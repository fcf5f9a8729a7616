"""Writes a model repository: the folder that Triton Inference Server loads a model from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...bundle.manifest import MANIFEST_FILE
from ...bundle.reader import Bundle
from ...errors import DiskFullError, RequestError, UnsupportedError
from ...onnx.weights import placed_without_room
from ...progress import ProgressCallback, silent
from ...specs import format_bytes
from ...staging import MARKER, staged_directory
from .options import CONFIG_FILE, ModelParameters
from .tensors import INPUTS, OUTPUTS, TensorForm

VERSION_FOLDER = "1"
MODEL_FILE = "model.py"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MICROSECONDS = 1_000_000
_MOST_IDLE = 1e9
"""Seconds, so that nanoseconds still fit into 64 bits."""
_MOST_CONVERSATIONS = 1024
"""Per instance, with sequence batching. Further ones wait until one of these ends."""

_MODEL = """\
from sala_export.interop.triton_server.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepositoryRequest:
    """A model that is to be written into a repository."""

    bundle: Path
    output: Path
    """The repository. Models that are there stay."""
    name: str
    """Clients ask for the model by it."""
    parameters: ModelParameters
    gpus: Sequence[int] = ()
    """Numbers of the GPUs that get an instance each. None: one instance, which chooses."""
    sequence_batching: bool = False
    """The server leads the turns of a conversation to the instance that has its state."""
    link: bool = False
    """Place the bundle's files as hard links."""
    force: bool = False
    """Replace a model of this name."""


def write_repository(request: RepositoryRequest, on_progress: ProgressCallback = silent) -> Path:
    """Write a model into a repository, which is made if it is not there. Returns the model's folder.

    The bundle lies in the folder, so that you can bring the repository to another machine.
    Raises: RequestError for a name that no model can have, options that do not fit together, or a folder that is taken;
        BundleError for a damaged bundle; UnsupportedError for one without text or weights.
    """
    _require_sound(request)
    bundle = Bundle.open(request.bundle)
    if not bundle.text_files():
        raise UnsupportedError(f"{request.bundle} has no tokenizer: build it from a checkpoint with tokenizer.json")
    if not bundle.manifest.weights.included:
        raise UnsupportedError(f"{request.bundle} is without its weights: build it with them")
    is_new = not request.output.exists()
    if is_new:
        _make(request.output)
    try:
        with staged_directory(request.output / request.name, marker=MARKER, force=request.force) as staging:
            version = staging / VERSION_FOLDER
            version.mkdir()
            (version / MODEL_FILE).write_text(_MODEL, encoding="utf-8")
            _place(bundle, version / request.parameters.bundle, link=request.link, on_progress=on_progress)
            (staging / CONFIG_FILE).write_text(config_text(request), encoding="utf-8")
    except BaseException:
        if is_new:
            request.output.rmdir()
        raise
    return request.output / request.name


def _require_sound(request: RepositoryRequest) -> None:
    parameters = request.parameters
    if not _NAME.fullmatch(request.name):
        raise RequestError(f"--name {request.name!r}: take letters, digits, '_', '-' and '.', at most 100")
    if len(set(request.gpus)) < len(request.gpus):
        raise RequestError("--gpus has a GPU twice: name each once")
    if not 1 / _MICROSECONDS <= parameters.max_idle <= _MOST_IDLE:
        raise RequestError(
            f"--max-idle {parameters.max_idle:g}: give seconds from {1 / _MICROSECONDS:g} to {_MOST_IDLE:g}"
        )
    if parameters.state_store_bytes is not None and parameters.state_store is None:
        raise RequestError("--state-store-bytes is the limit of a store: give --state-store DIR, too")


def _make(repository: Path) -> None:
    try:
        repository.mkdir()
    except OSError as error:
        raise RequestError(f"{repository} cannot be made: {error.strerror}: give another place") from None


def config_text(request: RepositoryRequest) -> str:
    """The model configuration, in protobuf's text form."""
    lines = [
        f"name: {_quoted(request.name)}",
        'backend: "python"',
        "max_batch_size: 0  # conversations are drawn together inside the model",
        "model_transaction_policy { decoupled: true }",
        *_tensors("input", INPUTS),
        *_tensors("output", OUTPUTS),
        *_instances(request.gpus),
    ]
    if request.sequence_batching:
        idle = int(request.parameters.max_idle * _MICROSECONDS)
        lines += [
            "sequence_batching {",
            f"  max_sequence_idle_microseconds: {idle}",
            f"  oldest {{ max_candidate_sequences: {_MOST_CONVERSATIONS} }}",
            "}",
        ]
    for name, value in request.parameters.texts().items():
        lines.append(f'parameters {{ key: "{name}" value {{ string_value: {_quoted(value)} }} }}')
    return "\n".join(lines) + "\n"


def _tensors(kind: str, forms: dict[str, TensorForm]) -> list[str]:
    further = " optional: true" if kind == "input" else ""
    return [
        f'{kind} {{ name: "{name}" data_type: TYPE_{form.data_type} dims: [ {-1 if form.is_list else 1} ]{further} }}'
        for name, form in forms.items()
    ]


def _instances(gpus: Sequence[int]) -> list[str]:
    if not gpus:
        return ["instance_group { kind: KIND_MODEL count: 1 }"]
    return [f"instance_group {{ kind: KIND_GPU count: 1 gpus: [ {', '.join(map(str, gpus))} ] }}"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _place(bundle: Bundle, target: Path, *, link: bool, on_progress: ProgressCallback) -> None:
    """Put the files of a bundle into a new folder, as they were opened. Raises: DiskFullError if there is no room."""
    files = {**bundle.files, MANIFEST_FILE: bundle.folder.open(MANIFEST_FILE)}
    copies = []
    for name, file in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if not placed_without_room(file, target / name, link=link):
            copies.append((name, file))
    needed, free = sum(file.size for _, file in copies), shutil.disk_usage(target).free
    if needed > free:
        raise DiskFullError(
            f"not enough disk to copy the bundle: {format_bytes(needed)} needed, {format_bytes(free)} free; --link "
            "takes no room on the bundle's own file system"
        )
    done = 0
    for name, file in copies:
        for count in file.copied(target / name):
            done += count
            on_progress("copy", done, needed, "bytes")
