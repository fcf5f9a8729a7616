"""Fuzzing of text files: `pytest tests/runtime/test_fuzz_text.py --fuzz-inputs 20000` before a release."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.documents import ROOT


@pytest.mark.parametrize("kind", ["files", "templates"])
def test_hostile_text_is_served_or_refused_in_one_line(kind: str, pytestconfig: pytest.Config) -> None:
    """All inputs in one process, which also tells when one takes long, or when memory leaks."""
    inputs = pytestconfig.getoption("--fuzz-inputs")
    command = [sys.executable, "-m", "support.text_fuzz", kind, str(inputs)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    # Nor does a library write there.
    assert done.stderr == ""
    served, refused = (re.search(rf"'{outcome}': (\d+)", done.stdout) for outcome in ("served", "refused"))
    assert served is not None
    assert refused is not None
    assert min(int(served[1]), int(refused[1])) > inputs // 20, (
        "a fuzzer that only breaks or never breaks finds nothing"
    )
    print(f"{kind}: {done.stdout}", end="")  # noqa: T201 -- shown by -s, before a release
