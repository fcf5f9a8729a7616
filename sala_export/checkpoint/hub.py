"""Finds the checkpoint directory of a model that a user names by directory or Hugging Face hub id."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ..errors import CheckpointError, RequestError, printable
from ..files import exists, is_directory
from ..specs import TOKENIZER_FILE, format_bytes
from .config import DEFAULT_MODEL
from .folder import ACCESSORY_FILES, ADAPTER_FILE, CHAT_TEMPLATE_FOLDER, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from .quantization_config import QUANTIZATION_FILES
from .tokenizer_files import ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE

_CONFIG_PATTERNS = (CONFIG_FILE, ADAPTER_FILE, *QUANTIZATION_FILES)
"""An adapter is known by its own configuration, before its weights are fetched. So is how a model is quantised."""
_PATTERNS = (
    *_CONFIG_PATTERNS,
    *(INDEX_FILE, "*.safetensors", *ACCESSORY_FILES, f"{CHAT_TEMPLATE_FOLDER}/*.jinja"),
)
"""Weights and text files only: the repository's Python code and copies of the weights in other formats stay there."""
_BESIDE_TOKENIZER = (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
_VOCABULARIES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "vocab.txt")
_NAMED = 3
_LIKE = 0.5
"""Likeness of names from which one may be meant by the other. Of four letters, two may be in each other's place."""

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
            f"{model}: there is no such directory{_near(path)}; give a checkpoint directory or a hub id such as "
            f"{DEFAULT_MODEL}"
        )
    wanted = _Wanted(model=model, revision=revision, cache_dir=cache_dir, config_only=config_only)
    if wanted.may_be_path(path):
        raise CheckpointError(
            f"{model}: there is no such directory in {path.parent}, which is here{_near(path)}; for the hub's model of "
            f"that name, fetch it with `{wanted.command}` first, or run this elsewhere"
        )
    return _download(wanted)


def local_path(model: str) -> Path:
    """The path that `model` is, if it is one, with `~` replaced by the home directory."""
    try:
        return Path(model).expanduser()
    except RuntimeError:  # there is no such user
        return Path(model)


def _near(path: Path) -> str:
    """The directory beside `path` whose name is like it, as a question: a checkpoint if there is one. Else empty."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = [path.with_name(name) for name in difflib.get_close_matches(path.name, names, cutoff=_LIKE)]
    near.sort(key=lambda directory: not exists(directory / CONFIG_FILE))
    return f", did you mean {near[0]}?" if near else ""


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
            "give a checkpoint directory"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """A hub id and what is wanted of it."""

    model: str
    revision: str | None
    cache_dir: Path | None
    config_only: bool

    @property
    def where(self) -> str:
        """For messages."""
        return self.model if self.revision is None else f"{self.model} at revision {self.revision}"

    @property
    def command(self) -> str:
        """What fetches all of it."""
        return f"hf download {self.model}" + ("" if self.revision is None else f" --revision {self.revision}")

    @property
    def cache(self) -> Path:
        """Directory of the cache that holds or would hold the model."""
        from huggingface_hub import constants

        root = Path(constants.HF_HUB_CACHE) if self.cache_dir is None else self.cache_dir
        return root.expanduser() / f"models--{self.model.replace('/', '--')}"

    def may_be_path(self, path: Path) -> bool:
        """True if the owner is a directory here, and nothing says that a hub id is meant.

        The cache says so if it holds something of it, and a revision does.
        """
        if self.revision is not None or self.model == DEFAULT_MODEL or not is_directory(path.parent):
            return False
        with _starting_library():
            return not exists(self.cache)

    def lacking(self, snapshot: Path) -> list[str]:
        """Files that a snapshot lacks, without those that a model need not have."""
        if not exists(snapshot / CONFIG_FILE):
            return [CONFIG_FILE] if not exists(snapshot / ADAPTER_FILE) else []
        if self.config_only:
            return []
        return _lacking_weights(snapshot) + ([TOKENIZER_FILE] if self._lacks_tokenizer(snapshot) else [])

    def _lacks_tokenizer(self, snapshot: Path) -> bool:
        """True if files that stand beside a vocabulary do without one, as no listing of the hub tells."""
        # Where the library keeps a listing, it has missed no file of it.
        if exists(self.cache / "trees" / f"{snapshot.name}.json"):
            return False
        has_vocabulary = any(exists(snapshot / name) for name in _VOCABULARIES)
        return not has_vocabulary and any(exists(snapshot / name) for name in _BESIDE_TOKENIZER)

    def unfinished_bytes(self) -> int:
        """Size of what an interrupted download has left in the cache."""
        return sum(file.stat().st_size for file in (self.cache / "blobs").glob("*.incomplete"))


def _lacking_weights(snapshot: Path) -> list[str]:
    if exists(snapshot / WEIGHTS_FILE):
        return []
    if not exists(snapshot / INDEX_FILE):
        return [f"its weights ({WEIGHTS_FILE}, or {INDEX_FILE} and what that lists)"]
    return [shard for shard in _listed_shards(snapshot / INDEX_FILE) if not exists(snapshot / shard)]


def _listed_shards(index: Path) -> list[str]:
    """Empty if the index is damaged: whoever reads the checkpoint says what is wrong."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return sorted({shard for shard in weight_map.values() if isinstance(shard, str)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _download(wanted: _Wanted) -> Path:
    _require_revision(wanted.revision)
    # Here, not above: a directory needs neither of them.
    with _starting_library():
        import httpx2
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            IncompleteSnapshotError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
            XetDownloadError,
        )

    logger.info("looking up %s on the Hugging Face hub", wanted.model)
    model, where = wanted.model, wanted.where
    patterns = list(_CONFIG_PATTERNS if wanted.config_only else _PATTERNS)
    try:
        snapshot = Path(
            snapshot_download(
                model,
                revision=wanted.revision,
                allow_patterns=patterns,
                # A star stands for slashes, too.
                ignore_patterns=["*/*.safetensors", "*/*/*"],
                cache_dir=wanted.cache_dir,
            )
        )
        if wanted.lacking(snapshot) and not _is_reachable(wanted):
            raise _incomplete(wanted, snapshot)
        return snapshot
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
    except IncompleteSnapshotError as error:
        raise _incomplete(wanted, Path(error.snapshot_path)) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where} cannot be downloaded: {_cause(error)}; it is not in the cache either ({wanted.cache}): run "
            f"`{wanted.command}` where the hub can be reached, or give a checkpoint directory"
        ) from error
    # ValueError: of a token, an address or a file of the cache that the library cannot read.
    except (httpx2.HTTPError, httpx2.InvalidURL, XetDownloadError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{where} cannot be downloaded: {_cause(error)}; run the command again to resume, or give a checkpoint "
            "directory"
        ) from error


def _is_reachable(wanted: _Wanted) -> bool:
    """True if the hub answers, so that what a snapshot lacks is not there either."""
    import httpx2
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(wanted.model, revision=wanted.revision)
    except (httpx2.HTTPError, OSError):
        return False
    return True


def _incomplete(wanted: _Wanted, snapshot: Path) -> CheckpointError:
    lacking = wanted.lacking(snapshot) or ["files that the hub has"]
    more = len(lacking) - _NAMED
    names = ", ".join(lacking[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    unfinished = wanted.unfinished_bytes()
    return CheckpointError(
        f"{wanted.where} is in the cache in part only, and the hub cannot be reached (no network, or HF_HUB_OFFLINE): "
        f"{snapshot} lacks {names}"
        + (f", beside {format_bytes(unfinished)} of an interrupted download" if unfinished else "")
        + f"; run `{wanted.command}` where the hub can be reached, or give a checkpoint directory"
    )


def _cause(error: BaseException) -> str:
    """The first line of what lies under an error of the hub library."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [""])[0].strip().rstrip(".") or type(error).__name__
