"""Finding the native libraries of an installation."""

from __future__ import annotations

from pathlib import Path

import pytest

import sala_export
from sala_export.errors import BuildError
from sala_export.installation import plugin_library, soname_shim


def test_libraries_of_this_installation_are_found() -> None:
    assert plugin_library().name == "libsala_plugins.so"
    assert soname_shim().name == "libtensorrt_rtx.so"


def test_second_directory_of_the_package_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "installed" / "lib" / "libsala_plugins.so"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(sala_export, "__path__", [str(tmp_path / "sources"), str(tmp_path / "installed")])
    assert plugin_library() == library


@pytest.mark.parametrize("find", [plugin_library, soname_shim])
def test_missing_library_says_what_to_do(find: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sala_export, "__path__", [str(tmp_path)])
    with pytest.raises(BuildError, match=rf"is not in {tmp_path}/lib: install the package with pip") as raised:
        find()  # type: ignore[operator]
    assert "\n" not in str(raised.value)
