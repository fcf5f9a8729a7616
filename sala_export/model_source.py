"""Opens the model that a user names: a bundle, a checkpoint directory or a hub id. It reads only JSON.

Every directory and file is opened once, so all that a source gives is of one model, whatever takes its place meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .bundle.hashing import Hashing, tensor_spans
from .bundle.manifest import MANIFEST_FILE, config_sha256, fingerprint
from .bundle.reader import Bundle
from .checkpoint.config import SalaConfig
from .checkpoint.folder import CONFIG_FILE, CheckpointFolder
from .checkpoint.keymap import EMBEDDING
from .checkpoint.reader import Checkpoint
from .checkpoint.tensor_location import TensorLocation
from .errors import BundleError, RequestError
from .files import TextFile, absolute, exists, is_directory
from .progress import silent
from .specs import TOKENIZER_FILE, Precision

_TEXT_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Of the configuration: they change no graph and no weight, and a bundle keeps its own."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """An open model."""

    opened: Bundle | CheckpointFolder
    name: str
    """A hub id or the name of a directory. For a bundle, the name of the model that it was built from."""
    config: SalaConfig
    other_weights: Path | None = None
    """A checkpoint whose weights take the place of the bundle's own."""

    @classmethod
    def open(
        cls, model: str | Path, revision: str | None = None, other_weights: str | Path | None = None
    ) -> ModelSource:
        """Find a model. A hub id is downloaded.

        Args: `other_weights`: a checkpoint directory, only for a bundle.
        Raises: BundleError, CheckpointError, ConfigError, UnsupportedError or RequestError naming what is wrong.
        """
        if exists(Path(model) / MANIFEST_FILE):
            return cls.of_bundle(Path(model), other_weights)
        if other_weights is not None:
            raise RequestError(f"weights {other_weights}: {model} is a checkpoint itself; give weights to a bundle")
        from .checkpoint.hub import resolve_model

        folder = CheckpointFolder.open(resolve_model(str(model), revision))
        name = absolute(folder.path).name if is_directory(Path(model)) else str(model)
        return cls(opened=folder, name=name, config=folder.config)

    @classmethod
    def of_bundle(cls, directory: Path, other_weights: str | Path | None = None) -> ModelSource:
        """Open a bundle as a model. Raises: BundleError if the directory is none."""
        if exists(directory / CONFIG_FILE) and not exists(directory / MANIFEST_FILE):
            raise BundleError(
                f"{directory} is a checkpoint: choose --runtime torch, or build a bundle of it and run that"
            )
        bundle = Bundle.open(directory)
        entry = bundle.manifest.model
        other = None if other_weights is None else Path(other_weights)
        name = entry.source if other is None else absolute(other).name
        return cls(opened=bundle, name=name, config=entry.config, other_weights=other)

    @property
    def path(self) -> Path:
        """The directory that was opened, for messages."""
        return self.opened.directory if isinstance(self.opened, Bundle) else self.opened.path

    @property
    def bundle(self) -> Bundle | None:
        """The bundle. None if the model is a checkpoint."""
        return self.opened if isinstance(self.opened, Bundle) else None

    def require_bundle(self) -> Bundle:
        """The bundle. Raises: RequestError if the model is a checkpoint."""
        if self.bundle is None:
            raise RequestError(
                f"{self.name} is a checkpoint, which only the torch runtime takes: choose it, or build a bundle"
            )
        return self.bundle

    def weights(self) -> Checkpoint:
        """The weights, which the first call opens.

        Raises: BundleError for a bundle without them, CheckpointError for missing or malformed ones, RequestError for
        weights that are not of the bundle's form.
        """
        return self._weights

    @cached_property
    def _weights(self) -> Checkpoint:
        if isinstance(self.opened, CheckpointFolder):
            return Checkpoint.open(self.opened)
        if self.other_weights is not None:
            return self._of_the_same_form(self.opened, self.other_weights)
        weights, directory = self.opened.manifest.weights, self.opened.directory
        if not weights.included:
            raise BundleError(
                f"{directory} was built with --no-weights: give the checkpoint's directory as weights (--weights DIR)"
            )
        if self.opened.manifest.precision.is_quantized:
            return _stored_tensors(self.opened)
        return Checkpoint.of_files(directory, self.config, [self.opened.file(file.path) for file in weights.files])

    def _of_the_same_form(self, bundle: Bundle, directory: Path) -> Checkpoint:
        """The checkpoint in `directory`, whose configuration and types are those of the bundle."""
        if not exists(directory / CONFIG_FILE):
            raise RequestError(
                f"{directory} has no {CONFIG_FILE}: weights are a checkpoint's directory in Hugging Face layout"
            )
        folder = CheckpointFolder.open(directory)
        config = folder.config.truncated(self.config.num_hidden_layers)
        theirs = _compared_fields(config)
        for name, value in _compared_fields(self.config).items():
            if theirs[name] != value:
                raise RequestError(
                    f"{directory / CONFIG_FILE}: {name} is {json.dumps(theirs[name])}, {bundle.directory} was built "
                    f"for {json.dumps(value)}: build a bundle from this checkpoint"
                )
        checkpoint = Checkpoint.open(folder, layers=self.config.num_hidden_layers)
        expected = bundle.manifest.weights.tensors
        for name, where in checkpoint.tensors().items():
            if name not in expected or where.dtype != expected[name].dtype:
                built = expected[name].dtype if name in expected else "a bundle without it"
                raise RequestError(
                    f"{where.file}: {name} is {where.dtype}, {bundle.directory} was built for {built}: build a bundle "
                    "from this checkpoint"
                )
        return checkpoint

    def quantized(self) -> Precision | None:
        """Precision in which the weights are quantised, from JSON alone. None if they are not.

        Raises: ConfigError or UnsupportedError.
        """
        if isinstance(self.opened, Bundle):
            precision = self.opened.manifest.precision
            return precision if precision.is_quantized else None
        quantization = self.opened.quantization()
        return quantization.precision if quantization else None

    def precision(self) -> Precision:
        """Precision of the bundle, or type of the checkpoint's weights. Raises: as `weights`."""
        if self.bundle is not None:
            return self.bundle.manifest.precision
        dtype = self.weights().dtype
        return next(precision for precision in Precision if precision.dtype == dtype)

    def fingerprint(self) -> str:
        """Hash the model. Equal models, bundles or checkpoints, have equal fingerprints.

        It is of the bytes that `Checkpoint.fill` of the weights has copied. Tensors that it has not copied are read.

        Raises: as `weights`, BundleError naming a tensor of a bundle that is not what was built, and BundleError or
        CheckpointError if something writes to the weights.
        """
        digests = self.weights().digests()
        spans = tensor_spans(self.weights())
        with Hashing({name: span for name, span in spans.items() if name not in digests}) as hashing:
            digests |= hashing.result(silent)
        if self.bundle is None or self.other_weights is not None:
            return fingerprint(config_sha256(self.config), digests)
        for name, sha256 in digests.items():
            self.bundle.require_tensor(name, sha256)
        return self.bundle.manifest.model.fingerprint

    def inv_freq(self) -> list[float]:
        """RoPE's frequencies, from the bundle or from the configuration."""
        if self.bundle is not None:
            return list(self.bundle.manifest.model.inv_freq)
        return list(self.config.inverse_frequencies())

    def text_files(self) -> dict[str, TextFile]:
        """Read the tokenizer's files, for `Tokenizer.from_files`. Empty if the model has no tokenizer.

        Raises: BundleError or CheckpointError naming a file that cannot be read or, in a bundle, is not what was built.
        """
        files = self.opened.text_files()
        return files if TOKENIZER_FILE in files else {}

    def require_unchanged(self) -> None:
        """Refuse what was read of a checkpoint, which has no hashes, if something wrote to its files meanwhile.

        Raises: ConfigError or CheckpointError naming the file.
        """
        folder = self.weights().folder
        if folder is not None:
            folder.directory.require_unchanged()


def _stored_tensors(bundle: Bundle) -> Checkpoint:
    """All tensors of a quantised bundle as they are stored, codes and scales too. Its type is that of the embedding."""
    files = {file.path: bundle.file(file.path) for file in bundle.manifest.weights.files}
    locations = {
        name: TensorLocation(
            file=files[tensor.file],
            offset=tensor.offset,
            length=tensor.bytes,
            dtype=tensor.dtype,
            shape=tensor.shape,
        )
        for name, tensor in bundle.manifest.weights.tensors.items()
    }
    config = bundle.manifest.model.config
    return Checkpoint(directory=bundle.directory, config=config, dtype=locations[EMBEDDING].dtype, locations=locations)


def _compared_fields(config: SalaConfig) -> dict[str, Any]:
    """What weights depend on, by the names of config.json, `sparse_config.topk` for example."""
    fields = {name: value for name, value in asdict(config).items() if name not in _TEXT_FIELDS}
    # What config.json calls it, unless only the first layers were taken.
    fields["num_hidden_layers"] = fields.pop("residual_depth")
    sparse = fields.pop("sparse_config")
    return fields | {f"sparse_config.{name}": value for name, value in sparse.items()}
