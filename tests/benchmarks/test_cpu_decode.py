"""The reading that decoding on a CPU is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runtime_bundles import tiny_cpu_bundle

from benchmarks import cpu_decode
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.keymap import EMBEDDING


def test_reading_takes_all_weights_but_the_embedding() -> None:
    bundle = Bundle.open(tiny_cpu_bundle())
    tensors = bundle.manifest.weights.tensors
    spans = cpu_decode.spans(bundle)
    for name, entry in tensors.items():
        begin, end = entry.offset, entry.offset + entry.bytes
        is_read = any(first <= begin and end <= last for first, last in spans[entry.file])
        assert is_read == (name != EMBEDDING), name
    wanted = sum(entry.bytes for name, entry in tensors.items() if name != EMBEDDING)
    size = sum(span.nbytes for span in cpu_decode.mapped_weights(bundle))
    assert 0.99 * wanted < size <= sum(last - first for each in spans.values() for first, last in each)


def test_benchmark_prints_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_decode.main([str(tiny_cpu_bundle()), "--context", "8", "--tokens", "1", "--rounds", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("GB/s") == 2
    assert "of the reading" in shown


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_decode.main([str(tmp_path)]) != 0
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")
