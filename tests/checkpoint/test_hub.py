from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
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
    named = "additional_chat_templates/rag.jinja"
    wanted = files | {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ bos_token }}", named: b"{{ documents }}"}
    unwanted = {"modeling_minicpm_sala.py": b"import os", "pytorch_model.bin": b"pickle", "figures/a.png": b"png"}
    unwanted |= {"original/model.safetensors": b"others", "original/config.json": b"{}"}
    asked = serve(repository(wanted | unwanted))
    snapshot = resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache")
    assert {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()} == set(wanted)
    assert not any(name in path for name in unwanted for path in asked)
    checkpoint = Checkpoint.open(snapshot)
    # The cache holds symbolic links to blobs, which a bundle must not link to.
    assert all(location.file.path.is_symlink() for location in checkpoint.locations.values())
    assert len(checkpoint.shard_files()) == 3
    assert {file.path.resolve().parent.name for file in checkpoint.shard_files().values()} == {"blobs"}
    assert checkpoint.text_files().keys() == {"tokenizer.json", "chat_template.jinja", named}

    asked = serve(unreachable)
    assert resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache") == snapshot
    assert asked


def partial_cache(root: Path, *names: str) -> Path:
    """A snapshot of acme/sala that holds these files of the golden checkpoint alone, as no listing of the hub tells."""
    repository = root / "models--acme--sala"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        (snapshot / name).write_bytes((GOLDEN_CHECKPOINT / name).read_bytes())
    return snapshot


INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        ([], "config.json"),
        (["config.json"], f"its weights (model.safetensors, or {INDEX} and what that lists)"),
        (["config.json", INDEX], ", ".join(SHARDS)),
        (["config.json", INDEX, SHARDS[1]], f"{SHARDS[0]}, {SHARDS[2]}"),
    ],
)
def test_partial_cache_is_named_with_what_it_lacks(
    tmp_path: Path, serve: Callable[[Handler], list[str]], names: list[str], lacking: str
) -> None:
    serve(unreachable)
    snapshot = partial_cache(tmp_path / "cache", *names)
    assert refusal("acme/sala", tmp_path) == (
        "acme/sala is in the cache in part only, and the hub cannot be reached (no network, or HF_HUB_OFFLINE): "
        f"{snapshot} lacks {lacking}; run `hf download acme/sala` where the hub can be reached, or give a checkpoint "
        "directory"
    )
    if names:
        assert resolve_model("acme/sala", cache_dir=tmp_path / "cache", config_only=True) == snapshot


BESIDE = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


@pytest.mark.parametrize("beside", BESIDE)
def test_cache_without_the_tokenizer_is_named(
    tmp_path: Path, serve: Callable[[Handler], list[str]], beside: str
) -> None:
    serve(unreachable)
    snapshot = partial_cache(tmp_path / "cache", "config.json", INDEX, *SHARDS)
    assert resolve_model("acme/sala", cache_dir=tmp_path / "cache") == snapshot
    (snapshot / beside).write_text("{}")
    assert f"{snapshot} lacks tokenizer.json; run `hf download acme/sala`" in refusal("acme/sala", tmp_path)
    assert resolve_model("acme/sala", cache_dir=tmp_path / "cache", config_only=True) == snapshot
    (snapshot / "tokenizer.model").touch()
    assert resolve_model("acme/sala", cache_dir=tmp_path / "cache") == snapshot


def test_model_on_the_hub_need_have_no_tokenizer(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    files = {path.name: path.read_bytes() for path in GOLDEN_CHECKPOINT.iterdir()}
    serve(repository(files | {"tokenizer_config.json": b"{}"}))
    snapshot = resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache")
    serve(unreachable)
    assert resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache") == snapshot
    # As older versions of the hub library leave the cache, with no listing of the hub.
    shutil.rmtree(snapshot.parents[1] / "trees")
    assert "lacks tokenizer.json" in refusal(DEFAULT_MODEL, tmp_path)
    serve(repository(files | {"tokenizer_config.json": b"{}"}))
    assert resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache") == snapshot


def test_interrupted_download_is_named(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    serve(unreachable)
    snapshot = partial_cache(tmp_path / "cache", "config.json", INDEX, *SHARDS[:2])
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "0a.incomplete").write_bytes(bytes(3 << 20))
    text = refusal("acme/sala", tmp_path)
    assert f"lacks {SHARDS[2]}, beside 3.00 MiB of an interrupted download; run" in text


def test_listing_of_the_hub_tells_what_the_cache_lacks(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    """After `plan`, which fetches config.json alone."""
    files = {path.name: path.read_bytes() for path in GOLDEN_CHECKPOINT.iterdir()}
    serve(repository(files))
    snapshot = resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache", config_only=True)
    assert [path.name for path in snapshot.iterdir()] == ["config.json"]
    serve(unreachable)
    assert resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache", config_only=True) == snapshot
    assert f"{snapshot} lacks its weights" in refusal(DEFAULT_MODEL, tmp_path)


def test_repository_without_safetensors_is_not_blamed_on_the_cache(
    tmp_path: Path, serve: Callable[[Handler], list[str]]
) -> None:
    config = (GOLDEN_CHECKPOINT / "config.json").read_bytes()
    serve(repository({"config.json": config, "pytorch_model.bin": b"pickle"}))
    snapshot = resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache")
    with pytest.raises(CheckpointError, match="weights must be safetensors files"):
        Checkpoint.open(snapshot)


def test_adapter_on_the_hub_is_known_before_its_weights_are_fetched(
    tmp_path: Path, serve: Callable[[Handler], list[str]]
) -> None:
    asked = serve(repository({"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}))
    snapshot = resolve_model(DEFAULT_MODEL, cache_dir=tmp_path / "cache", config_only=True)
    with pytest.raises(CheckpointError, match="holds a PEFT adapter"):
        Checkpoint.open(snapshot)
    assert not any("adapter_model" in path for path in asked)


def test_offline_mode_is_one_line(tmp_path: Path) -> None:
    snapshot = partial_cache(tmp_path / "hub", "config.json")
    program = (
        "from sala_export.checkpoint.hub import resolve_model\n"
        "from sala_export.errors import CheckpointError\n"
        "for model in ('acme/sala', 'acme/other'):\n"
        "    try: resolve_model(model)\n"
        "    except CheckpointError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    partial, absent = done.stdout.splitlines()
    assert f"{snapshot} lacks its weights" in partial
    assert f"it is not in the cache either ({tmp_path}/hub/models--acme--other): run `hf download acme/other`" in absent


def test_unreachable_hub_is_one_line(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    serve(unreachable)
    assert refusal(DEFAULT_MODEL, tmp_path) == (
        f"{DEFAULT_MODEL} cannot be downloaded: Name or service not known; it is not in the cache either "
        f"({tmp_path}/cache/models--openbmb--MiniCPM-SALA): run `hf download {DEFAULT_MODEL}` where the hub can be "
        "reached, or give a checkpoint directory"
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
        (418, "", "cannot be downloaded: "),
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
    tmp_path: Path, serve: Callable[[Handler], list[str]], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    asked = serve(unreachable)
    # Where no neighbour has a name like it.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert refusal(model, tmp_path).startswith(f"{model}: there is no such directory; give a checkpoint directory or a")
    assert asked == []


def test_name_that_is_nearly_that_of_a_directory_is_a_question(
    tmp_path: Path, serve: Callable[[Handler], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny-sala").mkdir(parents=True)
    (tmp_path / "models" / "tiny-slla").touch()
    assert "did you mean models/tiny-sala?; give" in refusal("./models/tiny-sla", tmp_path)
    text = refusal("models/tiny-sla", tmp_path)
    assert text.startswith("models/tiny-sla: there is no such directory in models, which is here, did you mean models/")
    assert "fetch it with `hf download models/tiny-sla` first" in text
    assert asked == []


def test_checkpoint_with_letters_in_each_others_place_is_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "tiny.sala", "typing"):
        (tmp_path / name).mkdir()
    (tmp_path / "tiny" / "config.json").touch()
    assert "there is no such directory, did you mean tiny?; give" in refusal("tyni", tmp_path)
    assert "did you mean" not in refusal("other", tmp_path)


@pytest.mark.parametrize("sign", ["revision", "cache", "published"])
def test_owner_that_is_a_directory_here_hides_no_hub_id_that_is_meant(
    tmp_path: Path, serve: Callable[[Handler], list[str]], monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    asked = serve(unreachable)
    monkeypatch.chdir(tmp_path)
    model = DEFAULT_MODEL if sign == "published" else "acme/sala"
    (tmp_path / model).parent.mkdir()
    if sign == "cache":
        (tmp_path / "cache" / "models--acme--sala").mkdir(parents=True)
    refusal(model, tmp_path, "v2" if sign == "revision" else None)
    assert asked


def test_file_and_malformed_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert refusal(str(path), tmp_path).startswith(f"{path} is a file: give the directory")
    assert refusal("owner/na me", tmp_path).startswith("owner/na me is neither a directory nor a hub id")


@pytest.mark.parametrize("revision", ["", "\udcfe", "a\nb", "../main", "/etc/hostname", "refs\\heads"])
def test_revision_that_can_be_none_is_not_looked_up(
    tmp_path: Path, serve: Callable[[Handler], list[str]], revision: str
) -> None:
    asked = serve(unreachable)
    with pytest.raises(RequestError, match=r"--revision '.*': expected a branch, tag or commit") as caught:
        resolve_model("owner/name", revision, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert asked == []


def test_damaged_cache_is_one_line(tmp_path: Path, serve: Callable[[Handler], list[str]]) -> None:
    serve(unreachable)
    refs = tmp_path / "cache" / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(b"\xfe\xfe")
    assert refusal("owner/name", tmp_path).startswith("owner/name cannot be downloaded: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HF_HUB_ETAG_TIMEOUT", b"soon", "the Hugging Face library does not start: invalid literal"),
        ("HF_ENDPOINT", b"http://[1", "the Hugging Face library does not start: Invalid IPv6 URL"),
        ("HF_ENDPOINT", b"http://localhost:70000", "the Hugging Face library does not start: Port out of range"),
        ("HF_ENDPOINT", b"http://localhost:1/\xfe", "owner/name cannot be downloaded: 'utf-8' codec can't encode"),
        ("HF_TOKEN", b"\xfe", "owner/name cannot be downloaded: 'ascii' codec can't encode"),
    ],
)
def test_environment_that_the_library_cannot_read_is_one_line(
    tmp_path: Path, name: str, value: bytes, told: str
) -> None:
    program = (
        "from sala_export.checkpoint.hub import resolve_model\n"
        "from sala_export.errors import CheckpointError\n"
        "try: resolve_model('owner/name')\n"
        "except CheckpointError as error: print(error)"
    )
    # Nothing listens there, so that nothing is fetched whatever happens.
    environment = os.environb | {b"HF_HOME": os.fsencode(tmp_path), b"HF_ENDPOINT": b"http://localhost:1"}
    environment |= {b"PYTHONPATH": os.fsencode(os.pathsep.join(filter(None, sys.path))), os.fsencode(name): value}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith(told)
