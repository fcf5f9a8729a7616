"""Figures of a GPU that does not exist, and a copy of the documents to record them in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record

ROOT = Path(__file__).parents[2]
GPU = "Imaginary X1"
NAME = "imaginary-x1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIGHTNING_CALL = "Lightning, chunk of 8K"
SPARSE_CALL = "InfLLM-v2, one token after 32K"
PREFILL = "lightning_prefill_kernel"
PEER = "fla chunk_simple_gla"
RAW = f"benchmarks/results/{NAME}-2001-02-03T040506-{COMMIT[:12]}.jsonl"
"""Where the raw figures of a run with `header()` are kept."""

Line = dict[str, Any]


def header(**changes: Any) -> Line:
    """Of a run that was no rehearsal; only a copy of the checkout may get its figures."""
    smi = {"name": GPU, "driver": "999.99", "most_sm_clock_mhz": "1000", "power_limit_watts": "70.00"}
    machine = {"gpu": GPU, "compute_capability": "9.9", "torch": "2.0", "triton": "3.0", "gpus": [smi]}
    line = {"machine": machine, "commit": COMMIT, "started": "2001-02-03T04:05:06+00:00", "rehearsal": False}
    return {"kind": "run", "step": "", **line, **changes}


def kernel(what: str, seconds: float, case: str = LIGHTNING_CALL, **changes: Any) -> Line:
    line = {"case": case, "dtype": "bfloat16", "what": what, "seconds": seconds, "spread": 0.02, "rounds": 5}
    return {"kind": "kernel", "way": "jit", "floor_seconds": None, "roofline_seconds": None, **line, **changes}


def gate(operator: str = "lightning_attention", **changes: Any) -> Line:
    line = {"operator": operator, "check": "prefill", "dtype": "bfloat16", "tensor": "y", "error": 0.25, "limit": 1.0}
    return {"kind": "gate", "way": "jit", **line, "passed": True, **changes}


def first_token(context: int, first: float, token: float, **changes: Any) -> Line:
    """Of the published model: 2 s and 4 ms are its floors."""
    line = {
        "first_token_seconds": {"median": first, "spread": 0.01, "runs": [first], "floor": 2.0},
        "token_seconds": {"median": token, "spread": 0.03, "runs": [token], "floor": 0.004},
        "published_first_token_seconds": {"rtx5090": 22.3},
        "device_memory_bytes": 3 << 30,
        "predicted_device_memory_bytes": 2 << 30,
        "host_memory_bytes": 1 << 30,
    }
    model = {"precision": "bf16", "runtime": "torch", "layers": 32, "agrees": True}
    return {"kind": "first_token", "context": context, **line, **model, **changes}


def overlap(layer: int, union: float) -> Line:
    line = {"model": "passkey", "context": 65536, "neighbours": 8, "union_blocks": union, "chosen_blocks": 60.0}
    return {"kind": "overlap", "layer": layer, **line}


def trial(candidate: str, case: str, seconds: float, kernel: str = PREFILL) -> Line:
    line = {"candidate": candidate, "case": case, "seconds": seconds, "spread": 0.01, "registers": 100}
    return {"kind": "tuning", "way": "jit", "dtype": "bfloat16", "kernel": kernel, **line}


def write(folder: Path, lines: Sequence[Line], end: str = "\n") -> Path:
    """A folder as it comes back from a GPU machine."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(line) for line in lines) + end
    (folder / "figures.jsonl").write_text(text, encoding="utf-8")
    return folder


def copy_of_documents(root: Path, predictions: str = "", reasons: str = "") -> Path:
    """A checkout with all documents, without results, and with these entries below `[gpus]`."""
    for name in record.DOCUMENTS.values():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    expected = root / "benchmarks" / "expected"
    expected.mkdir(parents=True)
    (expected / "predictions.toml").write_text(f'source = "a guess"\n[gpus]\n{predictions}', encoding="utf-8")
    (expected / "reasons.toml").write_text(f"[gpus]\n{reasons}", encoding="utf-8")
    return root


def entry(what: str, value: str, call: str = LIGHTNING_CALL, gpu: str = NAME) -> str:
    """Of predictions.toml or reasons.toml."""
    return f'[gpus.{gpu}."{call}"]\n"{what}" = {value}\n'


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of a document, each row by the names of its columns."""
    found: list[list[dict[str, str]]] = []
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not columns:
            columns = cells
            found.append([])
        elif set(line) - set("|- "):
            found[-1].append(dict(zip(columns, cells, strict=True)))
    return found


def table_with(text: str, *columns: str) -> list[dict[str, str]]:
    """The first table that has these columns and a row; empty if there is none."""
    return next((rows for rows in tables(text) if rows and set(columns) <= set(rows[0])), [])


def times() -> list[Line]:
    """An operator with its launches and its peer, in two ways, behind green gates."""
    return [
        gate(),
        gate(way="shipped"),
        kernel("operator", 3e-3, floor_seconds=1e-3, roofline_seconds=1.5e-3),
        kernel(PREFILL, 2e-3, roofline_seconds=1e-3),
        kernel(PEER, 4.8e-3, floor_seconds=1e-3),
        kernel("operator", 2.5e-3, way="shipped", floor_seconds=1e-3, roofline_seconds=1.5e-3),
    ]


def assert_refused(root: Path, figures: Path, capsys: pytest.CaptureFixture[str], why: str) -> None:
    before = snapshot(root)
    assert record.main([str(figures)], root) == 2
    told = capsys.readouterr()
    assert why in told.err
    assert (told.out, told.err.count("\n"), told.err[:7]) == ("", 1, "error: ")
    assert snapshot(root) == before
