"""Finds the checkpoint directory of a model that a user names by directory or Hugging Face hub id."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from ..errors import CheckpointError, RequestError, printable
from ..files import exists, is_directory
from .config import DEFAULT_MODEL
from .folder import ACCESSORY_FILES, CONFIG_FILE, INDEX_FILE

_PATTERNS = (CONFIG_FILE, INDEX_FILE, "*.safetensors", *ACCESSORY_FILES)
"""Weights and text files only: the repository's Python code and copies of the weights in other formats stay there."""

logger = logging.getLogger(__name__)


def resolve_model(
    model: str, revision: str | None = None, cache_dir: Path | None = None, *, config_only: bool = False
) -> Path:
    """The directory of a model, downloaded into the Hugging Face cache if `model` is a hub id.

    Args: `revision` is a branch, tag or commit of a hub repository. `cache_dir` replaces the Hugging Face cache.
        `config_only`: the directory need hold nothing but the configuration.
    A complete copy in the cache serves when the hub cannot be reached. Downloads show the hub library's progress bars.
    Raises: RequestError if a directory is given together with a revision; CheckpointError, one line, if `model` is
    neither a directory nor a hub id, or cannot be downloaded.
    """
    if not model:
        raise CheckpointError(f"the name of the model is empty: give a directory or a hub id such as {DEFAULT_MODEL}")
    path = local_path(model)
    if is_directory(path):
        if revision is not None:
            raise RequestError(f"--revision {revision} only applies to a hub id, but {model} is a directory")
        return path
    if exists(path):
        raise CheckpointError(f"{model} is a file: give the directory that holds {CONFIG_FILE} and the weights")
    if _looks_like_path(model):
        raise CheckpointError(
            f"{model} does not exist: give a checkpoint directory or a hub id such as {DEFAULT_MODEL}"
        )
    return _download(model, revision, cache_dir, (CONFIG_FILE,) if config_only else _PATTERNS)


def local_path(model: str) -> Path:
    """The path that `model` is, if it is one, with `~` replaced by the home directory."""
    try:
        return Path(model).expanduser()
    except RuntimeError:  # there is no such user
        return Path(model)


def _looks_like_path(model: str) -> bool:
    """Whether `model` can only be meant as a path: hub ids are `owner/name`, and neither part starts with a dot."""
    return model.startswith((".", "~", os.sep)) or model.endswith(os.sep) or model.count("/") != 1


def _require_revision(revision: str | None) -> None:
    """Refuse what names no branch, tag or commit: the hub library makes a path in its cache of it."""
    if revision is None:
        return
    is_path = ".." in revision or revision.startswith("/") or "\\" in revision
    if not revision or revision != printable(revision) or is_path:
        raise RequestError(f"--revision {revision!r}: expected a branch, tag or commit of the model on the hub")


@contextmanager
def _starting_library() -> Iterator[None]:
    """Around the imports of the hub library, which reads the environment then."""
    try:
        with redirect_stdout(StringIO()):  # where the library prints what it raises
            yield
    except ValueError as error:
        raise CheckpointError(
            f"the Hugging Face library does not start: {_cause(error)}; correct its environment variables (HF_...), or "
            "give --model a checkpoint directory"
        ) from error


def _download(model: str, revision: str | None, cache_dir: Path | None, patterns: tuple[str, ...]) -> Path:
    _require_revision(revision)
    # Here, not above: a directory needs neither of them.
    with _starting_library():
        import httpx2
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
            XetDownloadError,
        )

    logger.info("looking up %s on the Hugging Face hub", model)
    where = model if revision is None else f"{model} at revision {revision}"
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"], cache_dir=cache_dir
            )
        )
    except HFValidationError:
        raise CheckpointError(f"{model} is neither a directory nor a hub id such as {DEFAULT_MODEL}") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{where} is gated: accept its terms on the hub, then run `hf auth login` with a token that may read it"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{where} is not on the hub, or is private: check the id, or run `hf auth login` with a token that may "
            "read it"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{where} is not on the hub: --revision takes a branch, tag or commit of it") from None
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where} cannot be downloaded, and the cache has no complete copy: {_cause(error)}; "
            "check the connection, or give --model a checkpoint directory"
        ) from error
    # ValueError: of a token, an address or a file of the cache that the library cannot read.
    except (httpx2.HTTPError, httpx2.InvalidURL, XetDownloadError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{where} cannot be downloaded: {_cause(error)}; run the command again to resume, or give --model a "
            "checkpoint directory"
        ) from error


def _cause(error: BaseException) -> str:
    """The first line of what lies under an error of the hub library."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [""])[0].strip().rstrip(".") or type(error).__name__
