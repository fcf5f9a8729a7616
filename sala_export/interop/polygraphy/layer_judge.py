"""Polygraphy's comparator on the layers that `verify` runs, one at a time."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import Any

from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc
from torch import Tensor

from ...specs import stream_name


class LayerJudge:
    """Compares the rows after each layer as Polygraphy compares two runners, and prints its report.

    Only the rows of one layer are in memory. Of each layer its figures remain.
    """

    def __init__(self, check_error_stat: str, *, atol: float, rtol: float, to_stderr: bool = False) -> None:
        """Args: what `SimpleCompareFunc` of Polygraphy takes; `to_stderr`: print nothing on stdout."""
        self.compare = SimpleCompareFunc(check_error_stat=check_error_stat, atol=atol, rtol=rtol)
        self.settings = {"check_error_stat": check_error_stat, "atol": atol, "rtol": rtol}
        self.layers: list[dict[str, Any]] = []
        self._to_stderr = to_stderr

    @property
    def passed(self) -> bool:
        return all(layer["passed"] for layer in self.layers)

    def verdict(self) -> str:
        """One line that says which layers failed, for people."""
        failed = ", ".join(str(layer["layer"]) for layer in self.layers if not layer["passed"])
        return f"Polygraphy, layers {failed or 'none'}: {', '.join(f'{k} {v}' for k, v in self.settings.items())}"

    def __call__(self, layer: int, original: Tensor, tested: Tensor) -> None:
        """Compare rows fp32 [T, H]. Relative errors are those of `tested`, by the numbers of `original`."""
        name = stream_name(layer + 1)
        runs = RunResults()
        for runner, rows in (("tested", tested), ("original", original)):
            runs.append((runner, [IterationResult({name: rows.numpy()}, runner_name=runner)]))
        with redirect_stdout(sys.stderr) if self._to_stderr else nullcontext():
            (found,) = Comparator.compare_accuracy(runs, compare_func=self.compare)
        result = found["tested", "original"][0][name]
        self.layers.append({"layer": layer, "passed": bool(result), **result.metric_values()})

    def to_dict(self) -> dict[str, Any]:
        """Return settings, verdict and the figures of every layer as plain JSON values."""
        return {**self.settings, "passed": self.passed, "layers": self.layers}
