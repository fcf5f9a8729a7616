"""Draws a plan: time to the first token and device memory over the length of the prompt, a row for each GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..specs import format_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .plan import GpuPlan, Plan

_SALA, _DENSE, _LIMIT = "#0b6e4f", "#c1440e", "#444444"


def draw(plan: Plan) -> Figure:
    """Draw a row of two plots, of time and of memory, for each GPU. It needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5 * len(plan.gpus)), layout="constrained")
    for gpu, (time, memory) in zip(plan.gpus, figure.subplots(len(plan.gpus), 2, squeeze=False), strict=True):
        baseline = plan.baseline.name if plan.baseline else ""
        _draw_time(time, gpu, baseline)
        _draw_memory(memory, gpu, baseline)
    figure.suptitle(f"MiniCPM-SALA in {plan.request.precision}, predicted")
    return figure


def _draw_time(axes: Any, plan: GpuPlan, baseline: str) -> None:
    """`baseline` is the name of the model of `plan.baseline_rows`, if there are any."""
    rows = [row for row in plan.rows if row.fits]
    contexts = [row.context for row in rows]
    axes.plot(contexts, [r.prefill.predicted for r in rows], "o-", color=_SALA, label="SALA, predicted")
    axes.plot(contexts, [r.prefill.floor for r in rows], ":", color=_SALA, label="SALA, floor of the GPU")
    told = [row for row in rows if row.published_prefill is not None]
    if told:
        published = [r.published_prefill for r in told]
        axes.plot([r.context for r in told], published, "x", color=_SALA, label="SALA, published", markersize=8)
    if plan.baseline_rows:
        fitting = [row for row in plan.baseline_rows if row.fits]
        seconds = [r.prefill.predicted for r in fitting]
        axes.plot([r.context for r in fitting], seconds, "s-", color=_DENSE, label=f"{baseline}, predicted")
        told_dense = [row for row in fitting if row.published_prefill is not None]
        if told_dense:
            published = [r.published_prefill for r in told_dense]
            axes.plot([r.context for r in told_dense], published, "+", color=_DENSE, label=f"{baseline}, published")
        beyond = [row.context for row in plan.baseline_rows if not row.fits]
        if beyond:
            axes.axvspan(min(beyond) / 2**0.5, max(beyond) * 2**0.25, color=_DENSE, alpha=0.08, linewidth=0)
            at = axes.get_xaxis_transform()
            axes.text(min(beyond) / 2**0.4, 0.03, f"{baseline}: out of memory", color=_DENSE, transform=at)
    axes.set_yscale("log")
    axes.set_ylabel(f"seconds to the first token, {plan.recipe.name}")
    _finish(axes, [row.context for row in plan.rows])


def _draw_memory(axes: Any, plan: GpuPlan, baseline: str) -> None:
    gib = 2.0**30
    contexts = [row.context for row in plan.rows]
    axes.plot(contexts, [row.memory_bytes / gib for row in plan.rows], "o-", color=_SALA, label="SALA")
    if plan.baseline_rows:
        dense = [row.memory_bytes / gib for row in plan.baseline_rows]
        axes.plot([r.context for r in plan.baseline_rows], dense, "s-", color=_DENSE, label=baseline)
    limit = plan.recipe.memory_bytes / gib
    axes.axhline(limit, color=_LIMIT, linestyle="--", label=f"memory of the {plan.recipe.gpu}")
    axes.set_ylim(0, max(2.2 * limit, 1.1 * max(row.memory_bytes / gib for row in plan.rows)))
    axes.set_ylabel("device memory, GiB")
    _finish(axes, contexts)


def _finish(axes: Any, contexts: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [format_tokens(context) for context in contexts])
    axes.minorticks_off()
    axes.set_xlabel("tokens of the prompt")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
