"""A whole pack for a GPU machine: made, made again, unpacked in a fresh copy of the sources, and imported there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.release
def test_pack_is_made_unpacked_and_imported(tmp_path: Path) -> None:
    pack, sources = tmp_path / "pack", tmp_path / "sources"
    first = run(REPOSITORY / "scripts" / "gpu_pack.sh", pack, cwd=tmp_path)
    assert run(REPOSITORY / "scripts" / "gpu_pack.sh", pack, cwd=tmp_path) == first

    sources.mkdir()
    for name in run("git", "ls-files", cwd=REPOSITORY).splitlines():
        copy = sources / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy)
    (python,) = (REPOSITORY / "build" / "gpu-pack").glob("python-3.12*/bin")
    environment = {"PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path / "site")}
    run("bash", pack / "unpack.sh", tmp_path / "site", cwd=sources, **environment)
    told = run(
        python / "python3",
        "-c",
        "import pydantic, sala_export.runtime._native as n; print(n.__file__, pydantic.VERSION, sep='\\n')",
        cwd=sources,
        **environment,
    )
    module, version = told.splitlines()
    assert Path(module).parent == sources / "sala_export" / "runtime"
    assert f"pydantic-{version}-" in first
    # The program starts anywhere, and says what it lacks.
    driver = subprocess.run([pack / "bin" / "plugin_driver"], capture_output=True, text=True, check=False)
    assert driver.stdout.startswith('{"error": "give one argument, the plugin library')


@pytest.mark.release
def test_native_module_alone_makes_a_wheel(tmp_path: Path) -> None:
    options = ("--no-deps", "-C", "build.targets=sala_native", "-C", "install.components=python")
    run(sys.executable, "-m", "pip", "wheel", ".", *options, "--wheel-dir", tmp_path, cwd=REPOSITORY)
    (wheel,) = tmp_path.iterdir()
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if sys.version_info < (3, 12) else ".abi3.so"
    assert libraries == [f"sala_export/runtime/_native{suffix}"]
