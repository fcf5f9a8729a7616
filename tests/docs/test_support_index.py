"""tests/support/README.md names every helper that tests share, and nothing else."""

from __future__ import annotations

import re

from support.documents import ROOT

SUPPORT = ROOT / "tests" / "support"


def test_index_names_every_module_once() -> None:
    named = re.findall(r"`(\w+\.py)`", (SUPPORT / "README.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(path.name for path in SUPPORT.glob("*.py"))
