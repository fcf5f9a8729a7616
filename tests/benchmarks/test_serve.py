"""Benchmarks of the server, run for a moment."""

from __future__ import annotations

import re

import pytest

from benchmarks import serve_cost, serve_load, serve_pauses


@pytest.mark.parametrize("requests", [150, pytest.param(10_000, marks=pytest.mark.release)])
def test_load_finds_no_fault(requests: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = serve_load.main(["--requests", str(requests), "--clients", "32"])
    told = capsys.readouterr().out
    assert (code, re.findall("fault.*", told)) == (0, [])
    assert f"{requests:,} requests of 32 clients" in told


def test_cost_of_http_is_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_cost.main(["--model", "passkey", "--tokens", "20", "--rounds", "1"]) == 0
    assert len(re.findall(r"\d at once: .* tokens/s alone, .* through HTTP, \d+\.\d%", capsys.readouterr().out)) == 2


def test_pauses_are_told_and_the_long_prompt_is_answered_rightly(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_pauses.main(["--tokens", "4K", "--seconds", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "the long prompt was answered rightly" in told
    assert re.search(r"while 4,093 tokens were read in \d+ s: half at most [\d.]+ ms, 99 % \d+ ms, all \d+ ms", told)
