"""The benchmark of survivors on a short context, where Triton interprets, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from support.triton_interpreter import call_interpreting

from benchmarks.block_bounds import KINDS, Survivors, main, page, survivors_of


@pytest.mark.parametrize("kind", KINDS)
def test_survivors_are_counted_and_the_chosen_blocks_those_of_exact_scores(kind: str) -> None:
    found = call_interpreting(survivors_of, kind, 16384, 1, torch.device("cpu"))
    assert found.differing == 0
    # 256 blocks but for the initial one, 32 of the window and the own one, of which 62 are chosen.
    assert found.blocks == 222
    (count,) = found.counts
    assert 62 <= count <= 222
    assert found.fallen_back == 0


def test_page_says_how_many_tiles_fell_back() -> None:
    found = Survivors(kind="sharp", blocks=4062, counts=(700, 100, 512, 513), differing=3)
    assert page([found]).splitlines()[-1] == "| sharp | 4,062 | 513 | 700 | 50% | 3 |"


def test_what_cannot_be_served_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert main(["--tiles", "0"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: there is no GPU: set TRITON_INTERPRET=1 to run the kernels on the CPU",
        "error: --tiles 0: at least 1",
    ]
