"""Opens the two models that `verify` compares, from a bundle or a quantised checkpoint."""

from __future__ import annotations

from pathlib import Path

from ..bundle.manifest import MANIFEST_FILE
from ..bundle.reader import Bundle
from ..checkpoint.folder import CONFIG_FILE
from ..checkpoint.reader import Checkpoint
from ..errors import RequestError
from ..files import exists, is_directory
from ..specs import Precision
from .bundle_subject import BundleSubject
from .subject import CheckpointSubject, Subject


def open_target(target: Path, original: Checkpoint, layers: int | None) -> tuple[Subject, Subject, Precision]:
    """Open the original and the model under test. Returns both and the precision.

    Args: `layers`: take only this many layers of both.
    Raises: RequestError if `target` is neither, or not quantised. BundleError, CheckpointError or ConfigError.
    """
    if original.precision is not None:
        raise RequestError(
            f"--model {original.directory} is quantised itself: give the checkpoint that it was made from"
        )
    if exists(target / CONFIG_FILE):
        tested = Checkpoint.open(target, layers=layers)
        if tested.precision is None:
            raise RequestError(
                f"{target} is not quantised: there is nothing to verify before a bundle is built from it"
            )
        return CheckpointSubject(original), CheckpointSubject(tested), tested.precision
    if exists(target / MANIFEST_FILE) or not is_directory(target):
        # A path that does not exist is refused as a bundle is.
        bundle = Bundle.open(target)
        return CheckpointSubject(original), BundleSubject(bundle, layers), bundle.manifest.precision
    raise RequestError(
        f"{target} has neither {MANIFEST_FILE} nor {CONFIG_FILE}: give a bundle or a quantised checkpoint"
    )
