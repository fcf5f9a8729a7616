"""The server's description of itself, and requests made up from it: none is a fault of the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.passkey_text import passkey_text_bundle
from support.server import MODEL, RunningServer, running_server

from sala_export.serving.settings import Settings

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(passkey_text_bundle(), Settings(model_names=(MODEL,), default_max_tokens=4)) as running:
        yield running


def test_description_has_every_endpoint_and_the_names_of_the_model(server: RunningServer) -> None:
    description = httpx2.get(f"{server.url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/tokenize"} <= description[
        "paths"
    ].keys()
    assert description["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [MODEL]


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing", 10), pytest.param("coverage,fuzzing", 500, marks=pytest.mark.release)],
)
def test_requests_made_up_from_the_description_find_no_fault(
    server: RunningServer, phases: str, examples: int, tmp_path: Path
) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--phases", phases, "--max-examples", str(examples), "--generation-deterministic", "--no-color"]
    command = [program, "run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:]
