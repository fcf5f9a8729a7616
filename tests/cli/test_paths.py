"""`sala-export paths`: what other programs find by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sala_export import installation
from sala_export.cli.app import run

Capture = pytest.CaptureFixture[str]

NAMES = {
    "plugins": "libsala_plugins.so",
    "onnxruntime-operators": "libsala_ort.so",
    "soname-shim": "libtensorrt_rtx.so",
    "recipes": "engines",
    "tensorrt-llm": "sala_trtllm",
}


@pytest.mark.parametrize("name", NAMES)
def test_option_prints_one_bare_path(name: str, capsys: Capture) -> None:
    assert run(["paths", f"--{name}"]) == 0
    path = Path(capsys.readouterr().out.removesuffix("\n"))
    assert (path.name, path.exists()) == (NAMES[name], True)
    assert run(["paths", f"--{name}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, name: str(path)}


def test_table_tells_all(capsys: Capture) -> None:
    assert run(["paths", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["paths"]
    assert {name: Path(path).name for name, path in found.items()} == NAMES
    assert run(["paths"]) == 0
    table = capsys.readouterr().out
    assert all(f" {name} " in table and path in table for name, path in found.items())


def test_two_paths_are_refused(capsys: Capture) -> None:
    assert run(["paths", "--recipes", "--plugins"]) == 2
    assert capsys.readouterr().err == "error: --plugins and --recipes: give one of them, or none for a table of all\n"


def test_missing_library_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installation, "package_directories", lambda: (tmp_path / "sala_export",))
    assert run(["paths", "--plugins"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: libsala_plugins.so is not in {tmp_path}")
    assert captured.err.count("\n") == 1
    assert run(["paths", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["paths"].values()) == {None}
