"""What a user calls a model to run: a bundle, a checkpoint directory or a hub id. Only JSON is read to tell."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle.files import hash_files
from .bundle.manifest import MANIFEST_FILE, fingerprint
from .bundle.reader import Bundle
from .checkpoint.config import SalaConfig
from .checkpoint.reader import CONFIG_FILE, TOKENIZER_FILE, Checkpoint
from .errors import BundleError
from .progress import silent
from .specs import Precision

if TYPE_CHECKING:
    from .runtime.text import Tokenizer

_HASHING_THREADS = 8


def rope_frequencies(config: SalaConfig) -> list[float]:
    """By pair of channels, each exactly an fp32 number."""
    from .model.rope import inverse_frequencies

    return [float(x) for x in inverse_frequencies(config.rope_theta, config.head_dim)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model on disk."""

    directory: Path
    name: str
    """A hub id or the name of a directory; of a bundle, that of what it was built from."""
    config: SalaConfig
    bundle: Bundle | None
    """None: a checkpoint."""

    @classmethod
    def open(cls, model: str | Path, revision: str | None = None) -> ModelSource:
        """Find a model; a hub id is downloaded.

        Raises: BundleError, CheckpointError, ConfigError, UnsupportedError or RequestError naming what is wrong.
        """
        if (Path(model) / MANIFEST_FILE).is_file():
            return cls.of_bundle(Path(model))
        from .checkpoint.hub import resolve_model

        directory = resolve_model(str(model), revision)
        config = SalaConfig.from_file(directory / CONFIG_FILE)
        name = directory.absolute().name if Path(model).is_dir() else str(model)
        return cls(directory=directory, name=name, config=config, bundle=None)

    @classmethod
    def of_bundle(cls, directory: Path) -> ModelSource:
        """Raises: BundleError if the directory is none."""
        bundle = Bundle.open(directory)
        entry = bundle.manifest.model
        return cls(directory=directory, name=entry.source, config=entry.config, bundle=bundle)

    def weights(self) -> Checkpoint:
        """Where they are.

        Raises: BundleError for a bundle without them; CheckpointError for missing or malformed ones.
        """
        if self.bundle is None:
            return Checkpoint.open(self.directory)
        graph = self.bundle.manifest.graph
        if not graph.weights_included:
            raise BundleError(
                f"{self.directory} was built with --no-weights, so only its engine can run it: build the bundle with "
                "weights, or load the checkpoint"
            )
        return Checkpoint.of_files(
            self.directory, self.config, [self.directory / entry.path for entry in graph.weights]
        )

    def precision(self) -> Precision:
        """The bundle's, or the type of the checkpoint's weights. Raises: as `weights`."""
        if self.bundle is not None:
            return self.bundle.manifest.precision
        dtype = self.weights().dtype
        return next(precision for precision in Precision if precision.dtype == dtype)

    def fingerprint(self) -> str:
        """Equal for equal models, be they bundles or checkpoints; hashes the weights of a checkpoint.

        Raises: as `weights`.
        """
        if self.bundle is not None:
            return self.bundle.manifest.model.fingerprint
        files = self.weights().shard_files().values()
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            hashed = pool.map(lambda file: hash_files(file.parent, [file], silent, "hash"), files)
            return fingerprint(self.config, tuple(entry for entries in hashed for entry in entries))

    def inv_freq(self) -> list[float]:
        """RoPE's frequencies: the table of the bundle, or of the configuration."""
        if self.bundle is not None:
            return list(self.bundle.manifest.model.inv_freq)
        return rope_frequencies(self.config)

    def tokenizer(self) -> Tokenizer | None:
        """None if there is none. Raises: BundleError if its files are malformed."""
        if self.bundle is None and not (self.directory / TOKENIZER_FILE).is_file():
            return None
        # Here, not above: token ids need no tokenizer library.
        from .runtime.text import Tokenizer

        if self.bundle is not None:
            return Tokenizer.from_bundle(self.directory)
        return Tokenizer.from_directory(self.directory)
