from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import set_client_factory
from support.golden import GOLDEN_CHECKPOINT

from sala_export.checkpoint.config import DEFAULT_MODEL
from sala_export.checkpoint.hub import resolve_model
from sala_export.checkpoint.reader import Checkpoint
from sala_export.errors import CheckpointError, RequestError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], list[str]]]:
    """Answer the hub library's requests from a function; returns the list of paths asked for."""

    def start(handler: Handler) -> list[str]:
        asked: list[str] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            asked.append(request.url.path)
            return handler(request)

        set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True))
        return asked

    yield start
    set_client_factory(lambda: httpx2.Client(follow_redirects=True))


def repository(files: dict[str, bytes]) -> Handler:
    """A hub that holds one repository."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return httpx2.Response(200, json=entries)
        if path.startswith("/api/models/"):
            return httpx2.Response(200, json={"id": DEFAULT_MODEL, "sha": COMMIT, "siblings": []})
        content = files[path.split(f"/resolve/{COMMIT}/")[1]]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        headers["Content-Length"] = str(len(content))
        return httpx2.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)

    return answer


def refusal(model: str, tmp_path: Path, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_model(model, revision, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("Name or service not known", request=request)


def test_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(RequestError, match=r"--revision v2 only applies to a hub id"):
        resolve_model(str(tmp_path), "v2")


def test_download_takes_weights_and_text_files_only_and_serves_offline(
    tmp_path: Path, serve: Callable[[Handler], list[str]]
) -> None:
    files = {path.name: path.read_bytes() for path in GOLDEN_CHECKPOINT.iterdir()}
    wanted = files | {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ bos_token }}"}
    unwanted = {"modeling_minicpm_sala.py": b"import os", "pytorch_model.bin": b"pickle", "figures/a.png": b"png"}
    asked = serve(repository(wanted | unwanted))
    snapshot = resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache")
    assert {path.name for path in snapshot.iterdir()} == set(wanted)
    assert not any(name in path for name in unwanted for path in asked)
    checkpoint = Checkpoint.open(snapshot)
    # The cache holds symbolic links to blobs, which a bundle must not link to.
    assert all(location.file.path.is_symlink() for location in checkpoint.locations.values())
    assert len(checkpoint.shard_files()) == 3
    assert {file.path.resolve().parent.name for file in checkpoint.shard_files().values()} == {"blobs"}
    assert checkpoint.text_files().keys() == {"tokenizer.json", "chat_template.jinja"}

    asked = serve(unreachable)
    assert resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache") == snapshot
    assert asked


def test_unreachable_hub_is_one_line(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    serve(unreachable)
    assert refusal(DEFAULT_MODEL, tmp_path) == (
        f"{DEFAULT_MODEL} cannot be downloaded, and the cache has no complete copy: Name or service not known; "
        "check the connection, or give --model a checkpoint directory"
    )


def test_connection_lost_while_downloading_is_one_line(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    whole = repository({"config.json": b"{}"})

    def lose(request: httpx2.Request) -> httpx2.Response:
        if "/resolve/" in request.url.path and request.method == "GET":
            raise httpx2.ProtocolError("peer closed connection", request=request)
        return whole(request)

    serve(lose)
    text = refusal(DEFAULT_MODEL, tmp_path)
    assert text.startswith(f"{DEFAULT_MODEL} cannot be downloaded: peer closed connection; run the command again")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "is not on the hub, or is private: check the id"),
        (401, "RepoNotFound", "is not on the hub, or is private: check the id"),
        (403, "GatedRepo", "is gated: accept its terms on the hub"),
        (404, "RevisionNotFound", "is not on the hub: --revision takes a branch, tag or commit of it"),
        (418, "", "cannot be downloaded, and the cache has no complete copy"),
    ],
)
def test_refusal_by_the_hub_is_one_line(
    tmp_path: Path, serve: Callable[[Handler], list[str]], status: int, code: str, message: str
) -> None:
    serve(lambda request: httpx2.Response(status, headers={"X-Error-Code": code}, request=request))
    text = refusal("owner/name", tmp_path, "v2")
    assert text.startswith(f"owner/name at revision v2 {message}")


@pytest.mark.parametrize("model", ["./absent", "../absent", "/absent", "~/absent-checkpoint", "absent", "a/b/c", "a/"])
def test_path_that_does_not_exist_is_not_looked_up(
    tmp_path: Path, serve: Callable[[Handler], list[str]], model: str
) -> None:
    asked = serve(unreachable)
    assert refusal(model, tmp_path).startswith(f"{model} does not exist: give a checkpoint directory or a hub id")
    assert asked == []


def test_file_and_malformed_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert refusal(str(path), tmp_path).startswith(f"{path} is a file: give the directory")
    assert refusal("owner/na me", tmp_path).startswith("owner/na me is neither a directory nor a hub id")
