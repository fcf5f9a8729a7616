"""The requests of the commands: the model to take, and the bundle to build of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.config import DEFAULT_MODEL, SalaConfig
from ..checkpoint.folder import CheckpointFolder
from ..checkpoint.hub import local_path, resolve_model
from ..checkpoint.quantization import Quantization, require_precision
from ..checkpoint.reader import Checkpoint
from ..engine.request import EngineRequest
from ..errors import RequestError
from ..files import absolute, is_directory
from ..specs import Precision, built_precision


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """A model to take, or its first layers."""

    model: str = DEFAULT_MODEL
    """A directory in Hugging Face layout, or a hub id."""
    revision: str | None = None
    layers: int | None = None
    """Take only this many layers from the start, with the residual scale of the whole model. None takes all."""

    @property
    def name(self) -> str:
        """The model's own name, without owner or folders."""
        path = local_path(self.model)
        return absolute(path).resolve().name if is_directory(path) else path.name

    def config(self) -> SalaConfig:
        """Read the configuration of the model or its first `layers`. Of a hub model, only config.json is downloaded.

        Raises: CheckpointError, ConfigError, UnsupportedError or RequestError.
        """
        config = self._configured().config
        return config if self.layers is None else config.truncated(self.layers)

    def stored_quantization(self) -> Quantization | None:
        """Read from config.json alone how the model is quantised. None if it is not.

        Raises: ConfigError, UnsupportedError or CheckpointError.
        """
        return self._configured().quantization()

    def stored_precision(self) -> Precision | None:
        """The precision of a quantised model. None if it is not quantised. Raises: as `stored_quantization`."""
        quantization = self.stored_quantization()
        return quantization.precision if quantization else None

    def require_precision(self, precision: Precision) -> None:
        """Refuse, from config.json alone, a precision that is not that of a quantised model, or the reverse.

        Raises: RequestError saying what to do. Otherwise as `stored_quantization`.
        """
        require_precision(self.stored_precision(), precision, self.model)

    def _configured(self) -> CheckpointFolder:
        return CheckpointFolder.open(resolve_model(self.model, self.revision, config_only=True))

    def open(self) -> OpenedCheckpoint:
        """Find the checkpoint, download it if necessary, and check it.

        Raises: CheckpointError, ConfigError, UnsupportedError or RequestError.
        """
        # Judged before gigabytes are fetched.
        self.config()
        directory = resolve_model(self.model, self.revision)
        origin = self.name
        if not is_directory(local_path(self.model)):
            # A hub snapshot lies in a folder named after its commit, which says more than a branch.
            origin = f"{self.model}@{directory.name}"
        return OpenedCheckpoint(checkpoint=Checkpoint.open(directory, layers=self.layers), origin=origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that was found, with its configuration."""

    checkpoint: Checkpoint
    origin: str
    """Name of the model in a bundle: hub id and commit, or the name of the directory, never a path of this machine."""

    def require_outside(self, output: Path) -> None:
        """Refuse an output that holds the checkpoint, because `--force` would delete it.

        Raises: RequestError.
        """
        if absolute(self.checkpoint.directory).resolve().is_relative_to(absolute(output).resolve()):
            raise RequestError(f"{output} holds the checkpoint itself: choose another --output")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuRequest:
    """What takes the place of an engine in a bundle for machines without a GPU: the graphs for a CPU alone."""

    precision: Precision = Precision.BF16
    """That of the weights. Caches of the fast form have its 16-bit type."""

    @classmethod
    def from_options(cls, precision: str | None, stored: Precision | None) -> CpuRequest:
        """Make a request from command-line options.

        Args: `stored` is the precision of a quantised model, which is built unless `precision` says otherwise.
        Raises: RequestError for an unknown precision.
        """
        if precision is None:
            return cls(precision=stored or Precision.BF16)
        return cls(precision=built_precision(precision))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """One bundle to build."""

    model: ModelRequest
    engine: EngineRequest | CpuRequest
    output: Path
    may_round: bool = False
    """Round weights that the precision does not hold. If False, they are refused."""
    link_weights: bool = False
    """Put the weight files into the bundle as hard links, which take no room. Tools of ONNX refuse such files."""
    include_weights: bool = True
    """Put the weight files into the bundle. If False, whoever runs the bundle gives it the weights."""
    force: bool = False
