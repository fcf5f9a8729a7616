"""The files of the page, as the server sends them."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from support.passkey_text import passkey_text_bundle
from support.server import MODEL, running_server

import sala_export.serving.page as page_module
from sala_export.serving.settings import Keys, Settings

_KEY = "a-key-of-this-test"
_FILES = sorted(Path(page_module.__file__).with_name("page").iterdir())


def test_files_are_sent_without_a_key_and_under_a_strict_policy() -> None:
    settings = Settings(model_names=(MODEL,), keys=Keys([_KEY]))
    with running_server(passkey_text_bundle(), settings) as server, httpx2.Client(base_url=server.url) as client:
        assert client.get("/v1/models").status_code == 401
        for path in ("/", *(f"/page/{file.name}" for file in _FILES)):
            answer = client.get(path)
            assert answer.status_code == 200, path
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert client.get("/").text == (_FILES[0].parent / "index.html").read_text(encoding="utf-8")
        for path in ("/page/", "/page/none.js", "/page/..%2Fpage.py", "/page/../page.py", "/page/%2E%2E/settings.py"):
            assert client.get(path).status_code in (401, 404), path


def test_files_name_no_other_address_and_make_no_markup() -> None:
    for file in _FILES:
        text = file.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[\w.]+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, file.name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(", text), (
            file.name
        )
