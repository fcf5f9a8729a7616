"""The gate of the kernels: on a GPU, is each attention what its float64 reference says, and by how much is it off?

    python -m benchmarks.kernel_gate [--way jit] [--dtype both] [--repeats 20] [--figures figures.jsonl]

Each attention runs at the published sizes with modest contexts. Outputs and workspaces hold NaN before every run, and
the runs of one call have to give the same bits. The reference computes in float64 on the same GPU, with torch's own
operators. Each way has a process of its own. Exit code 2 if anything is off.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import block_bounds
from benchmarks.figures import FigureWriter, add_figure_options, read_figures
from benchmarks.gpu_machine import NO_GPU, CaseFailure, one_line
from benchmarks.kernel_cases import LIGHTNING_SIZES, SPARSE_SIZES
from benchmarks.kernel_ways import Run, Way, runner
from benchmarks.run_header import start_figures
from sala_export.ops.infllmv2_attention import tiles
from sala_export.ops.registry import CONTRACTS

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import lightning_checks, sparse_outcomes
from support.findings import Finding, differing
from support.oracles import SparseSizes
from support.sparse_outcomes import Case
from support.triton_interpreter import poisoned

ROOT = Path(__file__).parents[1]
LONG_PREFILL = "long prefill"
LONG_CONTEXT = 208 << 10
"""Tokens behind which every tile has more candidates than bounds begin with."""
LIGHTNING_TOKENS = {"decode": 1, "one segment": 100, "ragged segments": 1100}
DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
    "fp32": (torch.float32,),
    "both": (torch.bfloat16, torch.float16),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One call of one operator in one type."""

    operator: str
    name: str
    dtype: torch.dtype

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def findings(self, run: Run, device: str) -> list[Finding]:
        """Every output beside the reference; both compute on `device`."""
        if self.operator == "lightning_attention":
            return _lightning_findings(LIGHTNING_TOKENS[self.name], self.dtype, run, device)
        if self.name == LONG_PREFILL:
            return long_prefill_findings(self.dtype, run, device)
        return _sparse_findings(sparse_checks(self.dtype)[self.name], run, device)


def sparse_checks(dtype: torch.dtype) -> dict[str, Case]:
    """Calls at the published sizes, whose selection has more candidates than it may choose: from 6208 tokens on."""
    sizes: dict[str, Any] = dict(SPARSE_SIZES)
    sparse = SparseSizes(**{**sizes, "dense_len": -1})
    return {
        "prefill": Case(tokens=100, past=(6600, 7300), sizes=sparse, dtype=dtype),
        "prefill of neighbours alike": Case(tokens=100, past=(6600, 7300), sizes=sparse, dtype=dtype, likeness=0.95),
        "decode": Case(tokens=1, past=(6600, 7423), sizes=sparse, dtype=dtype),
        "dense prefill": Case(tokens=257, past=(300, 0), sizes=SparseSizes(**sizes), dtype=dtype),
        "dense decode": Case(tokens=1, past=(300, 0), sizes=SparseSizes(**sizes), dtype=dtype),
    }


def checks(dtypes: Sequence[torch.dtype]) -> list[Check]:
    """Of both operators."""
    sparse = [*sparse_checks(torch.float32), LONG_PREFILL]
    names = {"lightning_attention": list(LIGHTNING_TOKENS), "infllmv2_attention": sparse}
    return [
        Check(operator=operator, name=name, dtype=dtype)
        for dtype in dtypes
        for operator, of_operator in names.items()
        for name in of_operator
    ]


def _lightning_findings(tokens: int, dtype: torch.dtype, run: Run, device: str) -> list[Finding]:
    heads, dim = int(LIGHTNING_SIZES["num_heads"]), int(LIGHTNING_SIZES["head_dim"])
    inputs = lightning_checks.random_inputs(tokens, dim, batch=1, heads=heads)
    on_device = [x.to(device) for x in lightning_checks.in_type(inputs, dtype)]
    return lightning_checks.findings(on_device, dict(LIGHTNING_SIZES), run)


def _sparse_findings(case: Case, run: Run, device: str) -> list[Finding]:
    outcome = sparse_outcomes.run_case(case, sparse_outcomes.random_sequences(case).to(device), run)
    found = []
    for row in range(len(case.past)):
        found += sparse_outcomes.cache_findings(outcome, row)
        found += sparse_outcomes.output_findings(outcome, row)
        if case.sizes.dense_len < 0:
            found += sparse_outcomes.selection_findings(outcome, row)
    return _worst_of_each(found)


def long_prefill_findings(dtype: torch.dtype, run: Run, device: str, context: int = LONG_CONTEXT) -> list[Finding]:
    """A chunk whose tiles take bounds, where the GPU's tiles have them, beside its halves, which are too short for it.

    So far into a context the reference in float64 would take too long.
    """
    tokens = tiles.CONSTANTS["BOUNDED_TOKENS"]
    qkvg, past, length, *caches = block_bounds.made_up_call("topics", context, tokens, dtype, torch.device(device))

    def chosen(first: int, end: int) -> Tensor:
        inputs = [qkvg[:, first:end].contiguous(), past + first, length, *(cache.clone() for cache in caches)]
        return run("infllmv2_attention", inputs, block_bounds.ATTRIBUTES)["chosen"]

    halves = torch.cat([chosen(0, tokens // 2), chosen(tokens // 2, tokens)], dim=2)
    return [differing("chosen", chosen(0, tokens) != halves)]


def _worst_of_each(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each tensor: the largest error of its rows. An error that is no number is the largest."""
    worst: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda finding: math.inf if math.isnan(finding.error) else finding.error):
        worst[finding.tensor] = finding
    return list(worst.values())


class RepeatedRun:
    """Runs an operator several times on the same inputs, and counts the values whose bits differ from the first run.

    Outputs and chosen blocks are compared. What other workspaces hold may depend on which program wrote them.
    """

    def __init__(self, run: Run, repeats: int) -> None:
        self._run = run
        self._repeats = repeats
        self.differing = 0

    def __call__(
        self, operator: str, inputs: Sequence[Tensor], attributes: Mapping[str, int | float]
    ) -> dict[str, Tensor]:
        before = [x.clone() for x in inputs]
        first = self._run(operator, inputs, attributes)
        (contract,) = (contract for contract in CONTRACTS if contract.name == operator)
        compared = {output.name for output in contract.outputs} | (first.keys() & {"chosen"})
        for _ in range(self._repeats - 1):
            again = self._run(operator, [x.clone() for x in before], attributes)
            self.differing += sum(int((_bits(first[name]) != _bits(again[name])).sum()) for name in compared)
        return first


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def judge(check: Check, way: Way, device: str, repeats: int) -> list[Finding]:
    """Run one check one way. Raises: `CaseFailure` errors if it cannot run."""
    run = RepeatedRun(runner(way, poisoned), repeats)
    found = check.findings(run, device)
    if repeats > 1:
        found.append(Finding(tensor=f"bits of {repeats} runs", error=float(run.differing), limit=0.0))
    return found


def run_gate(
    ways: Sequence[Way], dtypes: Sequence[torch.dtype], device: str, repeats: int, figures: FigureWriter
) -> Iterator[tuple[Way, Check, str | None]]:
    """Every check every way, with what is wrong in one line, or None; each is written to `figures` as it ends."""
    for way in ways:
        for check in checks(dtypes):
            yield way, check, _judged(way, check, device, repeats, figures)


def _judged(way: Way, check: Check, device: str, repeats: int, figures: FigureWriter) -> str | None:
    named = {"way": str(way), "operator": check.operator, "check": check.name, "dtype": check.type_name}
    try:
        found = judge(check, way, device, repeats)
    except CaseFailure as error:
        message = one_line(error)
        figures.write("gate", **named, tensor="", error=None, limit=None, passed=False, message=message)
        return message
    for finding in found:
        error = finding.error if math.isfinite(finding.error) else None
        told = {"tensor": finding.tensor, "error": error, "limit": finding.limit, "passed": finding.passed}
        figures.write("gate", **named, **told)
    wrong = [f"{f.tensor} is off by {f.error:.3g}, allowed is {f.limit:.3g}" for f in found if not f.passed]
    return "; ".join(wrong) or None


def red_operators(path: Path, way: Way, dtypes: Sequence[torch.dtype]) -> set[tuple[str, str]] | None:
    """Operators and types that failed the gate in a file of figures; None if a check of this way is missing there.

    Raises: FiguresError.
    """
    found = [figure for figure in read_figures(path) if figure["kind"] == "gate" and figure["way"] == str(way)]
    known = {(figure["operator"], figure["check"], figure["dtype"]) for figure in found}
    if not {(check.operator, check.name, check.type_name) for check in checks(dtypes)} <= known:
        return None
    return {(figure["operator"], figure["dtype"]) for figure in found if not figure["passed"]}


def run_apart(ways: Sequence[Way], options: argparse.Namespace) -> int:
    """Each way in a process of its own, all at a time; returns 2 if one failed.

    After the fault of one kernel a process can run no other, of whatever way.
    """
    same = ["--dtype", options.dtype, "--repeats", str(options.repeats), "--step", options.step]
    same += ["--figures", str(options.figures.resolve())] if options.figures else []
    command = [sys.executable, "-m", "benchmarks.kernel_gate", *same]
    processes = [subprocess.Popen([*command, "--way", way], cwd=ROOT) for way in ways]
    codes = [process.wait() for process in processes]
    for way, code in zip(ways, codes, strict=True):
        if code:
            print(f"error: {way} ended with code {code}", file=sys.stderr)
    return 2 if any(codes) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if an operator is off or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_gate", description=__doc__.split("\n")[0])
    parser.add_argument("--way", action="append", type=Way, choices=list(Way), help="code to check (default: jit)")
    parser.add_argument("--dtype", choices=DTYPES, default="both", help="activation type (default: both 16-bit types)")
    parser.add_argument(
        "--repeats", type=int, default=20, help="number of runs that must give equal bits (default: 20)"
    )
    add_figure_options(parser)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if not torch.cuda.is_available():
        print(f"error: {NO_GPU}", file=sys.stderr)
        return 2
    figures = start_figures(options)
    ways = options.way or [Way.JIT]
    if len(ways) > 1:
        return run_apart(ways, options)
    red = 0
    for way, check, wrong in run_gate(ways, DTYPES[options.dtype], "cuda", options.repeats, figures):
        red += wrong is not None
        print(f"{'RED' if wrong else 'ok ':3} {way}, {check.operator}, {check.name}, {check.type_name}: {wrong or ''}")
    if red:
        print(f"error: {red} checks are red, {', '.join(ways)}", file=sys.stderr)
    return 2 if red else 0


if __name__ == "__main__":
    sys.exit(main())
