"""Python programs on a machine that lacks some packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run_without(packages: Iterable[str], command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run this Python in the repository as if `packages` were not installed, its child processes included.

    Args: `command`, arguments of Python; `folder`, to be made, for modules that stand before the installed ones.
    """
    folder.mkdir()
    for name in packages:
        line = f"raise ModuleNotFoundError(\"No module named '{name}', as this test wants it\", name='{name}')\n"
        (folder / f"{name}.py").write_text(line, encoding="utf-8")
    paths = [str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
