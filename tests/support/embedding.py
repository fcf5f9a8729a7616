"""The installed package as docs/embedding.md makes it."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

from filelock import FileLock
from support.documents import ROOT
from support.text_bundles import tiny_text_bundle

PAGE = ROOT / "docs" / "embedding.md"
PREFIX = ROOT / "build" / "sala"
EXAMPLES = ROOT / "build" / "examples"

_FENCE = re.compile(r"^```sh( \w+)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def command_blocks(kind: str = "") -> list[str]:
    """The shell blocks of the page that say `kind` after `sh`, in order."""
    return [body for said, body in _FENCE.findall(PAGE.read_text(encoding="utf-8")) if said.strip() == kind]


def run(script: str) -> str:
    """A script from the top of the checkout, stopped at the first failure; `out.sala` is the tiny bundle."""
    script = script.replace("out.sala", str(tiny_text_bundle()))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def page_outputs() -> list[str]:
    """What every block printed. Built below build/ of the checkout and kept there: the next run takes seconds."""
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / ".embedding.lock"):
        for state in EXAMPLES.glob("*.state"):
            state.unlink()
        return [run(block) for block in command_blocks()]


def installed() -> Path:
    """The prefix."""
    page_outputs()
    return PREFIX
