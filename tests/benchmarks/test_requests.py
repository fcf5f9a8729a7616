"""Requests side by side, measured beside the same ones after each other."""

from __future__ import annotations

import re

import pytest

from benchmarks import requests


def test_both_ways_are_timed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "tiny", "--layers", "2", "--device", "cpu", "--context", "64", "--tokens", "2"]
    assert requests.main([*arguments, "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"\d+\.\d\d s", told)) == 4
    assert len(re.findall(r"\d+\.\d\d times as fast", told)) == 2


def test_wrong_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert requests.main(["--preset", "tiny", "--device", "cpu", "--layers", "99"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
