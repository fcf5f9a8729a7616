"""What the benchmark of speculation compares: four texts, of which drafts are right always, sometimes and never."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks import speculation


def test_both_ways_are_timed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--context", "64", "--tokens", "60"]
    assert speculation.main([*arguments, "--rounds", "1", "--threads", "1"]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    drafts = {line[0]: (int(line[4]), int(line[5])) for line in lines[2:]}
    assert drafts["copy"][0] == drafts["copy"][1] > 40
    assert drafts["guess"][0] > drafts["guess"][1] > 0
    assert drafts["decoy"][0] > 0 == drafts["decoy"][1]
    assert drafts["new"] == (0, 0)


@pytest.mark.parametrize("count", [16, 82, 700])
def test_decoy_repeats_three_tokens_and_never_four(count: int) -> None:
    text = speculation.decoy(np.zeros(0, np.int32), count).tolist()
    threes, fours = (Counter(tuple(text[i : i + n]) for i in range(count + 1 - n)) for n in (3, 4))
    assert len(text) == count
    assert max(fours.values()) == 1
    assert max(threes.values()) > 1


def test_wrong_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert speculation.main(["--preset", "tiny", "--device", "cpu", "--layers", "99"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
