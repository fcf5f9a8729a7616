"""Finds the checkpoint directory of a model that a user names by directory or Hugging Face hub id."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..errors import CheckpointError, RequestError
from ..files import exists, is_directory
from .config import DEFAULT_MODEL
from .folder import ACCESSORY_FILES, CONFIG_FILE
from .reader import INDEX_FILE

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


def _download(model: str, revision: str | None, cache_dir: Path | None, patterns: tuple[str, ...]) -> Path:
    # Here, not above: a directory needs neither of them.
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
    except (httpx2.HTTPError, XetDownloadError, OSError) as error:
        raise CheckpointError(
            f"{where} cannot be downloaded: {_cause(error)}; run the command again to resume, or give --model a "
            "checkpoint directory"
        ) from error


def _cause(error: BaseException) -> str:
    """The first line of what lies under an error of the hub library."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [""])[0].strip().rstrip(".") or type(error).__name__
