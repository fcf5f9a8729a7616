"""A checkpoint directory in Hugging Face layout: config, weights by location, accessory files.

Opening reads config.json, the index and the headers of the shards: kilobytes, whatever the size of the model. Nothing
here imports torch until a tensor is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, printable
from ..files import Directory, OpenedFile, TextFile, read_json
from ..specs import DType, Precision
from .background_hashes import BackgroundHashes
from .config import SalaConfig
from .float_types import FLOAT_TYPES, common_type
from .folder import INDEX_FILE, WEIGHTS_FILE, CheckpointFolder
from .keymap import Weight, weights
from .quantization import Quantization, require_precision
from .quantized_weights import QuantizedWeight, quantized_weights, tensor_names, unread_names
from .safetensors_header import StoredTensor, read_header
from .surplus import require_no_surplus
from .tensor_location import TensorFile, TensorLocation, locate

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_CONVERT = "convert the checkpoint to bfloat16"
_NAMED_IN_ERRORS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checked checkpoint: every weight that `config` calls for exists, whole and in the right shape.

    Weights that `quantization` covers are in `quantized`, all others in `locations`.
    """

    directory: Path
    """For messages."""
    config: SalaConfig
    dtype: DType
    """What the checkpoint counts as, float32, float16 or bfloat16: the type of most elements that are not quantised.
    Each tensor has its own type in `locations`."""
    locations: Mapping[str, TensorLocation]
    """Weights by name, in the order of `keymap.weights`. Other tensors of the files are left out."""
    quantization: Quantization | None = None
    quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    """Quantised weights by name, `...q_proj.weight`, in the order of `keymap.weights`."""
    folder: CheckpointFolder | None = None
    """The open directory. None if a bundle holds the weights."""
    _hashes: BackgroundHashes = field(default_factory=BackgroundHashes, repr=False, compare=False)

    @classmethod
    def open(cls, directory: Path | CheckpointFolder, layers: int | None = None) -> Checkpoint:
        """Read and check a checkpoint directory; with `layers`, only the first that many.

        Shards that hold no weight of the layers taken need not exist.

        Raises: ConfigError or UnsupportedError for the configuration, RequestError for `layers`, CheckpointError for
        the files; each names the file and the field or tensor.
        """
        folder = directory if isinstance(directory, CheckpointFolder) else CheckpointFolder.open(directory)
        config = folder.config if layers is None else folder.config.truncated(layers)
        quantization = _quantization(folder)
        unread = unread_names(folder.config, quantization) if quantization else ()
        owned = [*_stored_names(folder.config, quantization), *unread]
        require_no_surplus(folder.directory, folder.config, owned)
        for note in quantization.notes if quantization else ():
            logger.warning("%s: %s", folder.path, note)
        plain = [weight for weight in weights(config) if not (quantization and quantization.covers(weight.name))]
        found = _find(folder.directory, _stored_names(config, quantization))
        locations = {weight.name: _plain(*found[weight.name], weight) for weight in plain}
        folder.directory.require_unchanged()
        return cls(
            directory=folder.path,
            config=config,
            dtype=common_type(locations),
            locations=locations,
            quantization=quantization,
            quantized=quantized_weights(weights(config), quantization, found, folder.path) if quantization else {},
            folder=folder,
        )

    @property
    def precision(self) -> Precision | None:
        """Precision in which the projections are quantised. None if they are not."""
        return self.quantization.precision if self.quantization else None

    @classmethod
    def of_files(cls, directory: Path, config: SalaConfig, files: Iterable[OpenedFile]) -> Checkpoint:
        """The weights of `config` in safetensors files that a manifest lists, as in a bundle.

        Raises: CheckpointError naming the directory or file and the tensor.
        """
        wanted = weights(config)
        stored = {name: (file, tensor) for file in files for name, tensor in read_header(file).items()}
        lacking = [weight.name for weight in wanted if weight.name not in stored]
        if lacking:
            raise CheckpointError(f"{directory} has no {_listed(lacking)} among its weights, in a type to compute with")
        locations = {weight.name: _plain(*stored[weight.name], weight) for weight in wanted}
        return cls(directory=directory, config=config, dtype=common_type(locations), locations=locations)

    def require_precision(self, precision: Precision) -> None:
        """Refuse to quantise, or to take back, what the checkpoint holds. Raises: RequestError saying what to do."""
        require_precision(self.precision, precision, str(self.directory))

    def tensors(self) -> dict[str, TensorLocation]:
        """Every stored tensor that the numbers of the model depend on, by its name."""
        found = dict(self.locations)
        for weight in self.quantized.values():
            found |= weight.tensors
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """Read a weight that is not quantised, into memory of its own on the CPU.

        Raises: CheckpointError or BundleError if the file was cut off since it was opened, or if the tensor had other
        bytes when it was read before.
        """
        from .torch_tensor import read_tensor

        return read_tensor(self.locations[name])

    def fill(self, weight: Weight, out: torch.Tensor) -> None:
        """Copy a weight that is not quantised to `out`, of its shape, on any device and in any type.

        The bytes that are copied are hashed in other threads: `digests` tells.
        """
        from .torch_tensor import as_tensor

        where = self.locations[weight.name]
        out.copy_(as_tensor(where, self._hashes.read(where)))

    def digests(self) -> dict[str, str]:
        """SHA-256 of each tensor that was read with `fill`, or to be compared, as it was read.

        Raises: CheckpointError or BundleError if a tensor had other bytes when it was read again.
        """
        self._hashes.wait()
        hashes = {name: where.sha256 for name, where in self.tensors().items()}
        return {name: sha256 for name, sha256 in hashes.items() if sha256 is not None}

    def shard_files(self) -> dict[str, TensorFile]:
        """The files that hold the weights, by the names that they have in a bundle."""
        return {location.file.path.name: location.file for location in self.tensors().values()}

    def text_files(self) -> dict[str, TextFile]:
        """Read the accessory files of the directory, by name.

        Raises: as `CheckpointFolder.text_files`; ConfigError or CheckpointError if files of the directory were replaced
        since it was opened.
        """
        if self.folder is None:
            return {}
        files = self.folder.text_files()
        self.folder.directory.require_unchanged()
        return files

    def require_hashes(self, digests: Mapping[str, str]) -> None:
        """Refuse what was read of tensors that have another SHA-256 in `digests`, by name. Raises: as `digests`."""
        for name, where in self.tensors().items():
            where.file.remember(where.offset, where.length, digests[name])

    def require_unchanged(self) -> None:
        """Refuse what was read if something wrote to the weights meanwhile.

        Raises: CheckpointError or BundleError naming the file.
        """
        for file in self.shard_files().values():
            file.require_unchanged()

    def weight_bytes(self) -> int:
        """Size of all weights together, their scales included, those of inputs not."""
        quantized = sum(weight.data.length + weight.scale.length for weight in self.quantized.values())
        return quantized + sum(location.length for location in self.locations.values())


def _quantization(folder: CheckpointFolder) -> Quantization | None:
    """How the model is quantised, and which of its projections are."""
    quantization = folder.quantization()
    if quantization is None or quantization.layout.marker is None:
        return quantization
    modules = [weight.name.removesuffix(".weight") for weight in weights(folder.config)]
    return quantization.of_stored(modules, _all_names(folder.directory))


def _all_names(directory: Directory) -> Container[str]:
    """Names of all tensors of a directory."""
    if directory.has(WEIGHTS_FILE):
        return read_header(directory.open(WEIGHTS_FILE))
    return _weight_map(directory)


def _stored_names(config: SalaConfig, quantization: Quantization | None) -> list[str]:
    """The tensors that stand for the weights of `config`."""
    names: list[str] = []
    for weight in weights(config):
        if quantization and quantization.covers(weight.name):
            names += tensor_names(weight, quantization)
        else:
            names.append(weight.name)
    return names


def _find(directory: Directory, names: Sequence[str]) -> dict[str, tuple[OpenedFile, StoredTensor]]:
    """Shard and header entry of every wanted tensor."""
    single = directory.has(WEIGHTS_FILE)
    shard_of = dict.fromkeys(names, WEIGHTS_FILE) if single else _read_index(directory, names)
    shards = tuple(dict.fromkeys(shard_of.values()))
    absent = [shard for shard in shards if not directory.has(shard)]
    if absent:
        raise CheckpointError(f"{directory} lacks {_listed(absent)}: download the checkpoint again")
    files = {shard: directory.open(shard) for shard in shards}
    headers = {shard: read_header(file) for shard, file in files.items()}
    lacking = [name for name in names if name not in headers[shard_of[name]]]
    if lacking:
        places = _listed(list(dict.fromkeys(shard_of[name] for name in lacking)))
        raise CheckpointError(
            f"{directory}: {places} should hold {_listed(lacking)} but does not: "
            "the checkpoint is incomplete or of another model"
        )
    return {name: (files[shard_of[name]], headers[shard_of[name]][name]) for name in names}


def _weight_map(directory: Directory) -> dict[str, Any]:
    """What the index of a directory gives for each tensor."""
    if not directory.has(INDEX_FILE):
        raise CheckpointError(
            f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}: weights must be safetensors files"
        )
    file = directory.open(INDEX_FILE)
    index = read_json(file, error=CheckpointError)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{file} has no weight_map object: download it again")
    return weight_map


def _read_index(directory: Directory, names: Iterable[str]) -> dict[str, str]:
    """The name of the shard that the index gives for each of `names`."""
    weight_map, file = _weight_map(directory), directory.open(INDEX_FILE)
    unlisted = [name for name in names if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"{file} does not list {_listed(unlisted)}: it is incomplete or of another model")
    for name in names:
        shard = weight_map[name]
        # A path with folders could point outside the checkpoint, and bundles place shards by their bare names.
        if not _is_bare_name(shard):
            raise CheckpointError(
                f"{file} places {name} in {shown(shard)}, expected a .safetensors file beside it, "
                "with a name of printable characters"
            )
    return {name: weight_map[name] for name in names}


def _is_bare_name(shard: object) -> bool:
    return (
        isinstance(shard, str)
        and shard == Path(shard).name
        and shard == printable(shard)
        and shard.endswith(".safetensors")
    )


def _plain(file: OpenedFile, stored: StoredTensor, weight: Weight) -> TensorLocation:
    """A weight that is not quantised."""
    return locate(file, weight.name, stored, FLOAT_TYPES, [weight.shape], _CONVERT)


def _listed(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = len(names) - _NAMED_IN_ERRORS
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
