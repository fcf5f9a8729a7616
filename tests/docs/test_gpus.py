"""The table of docs/gpus.md is what `sala-export plan` predicts, and it has every GPU that there is a recipe for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from support.documents import ROOT

from sala_export.engine.recipe import GpuRecipe, Target, load_recipe, recipe_paths
from sala_export.engine.request import EngineRequest
from sala_export.planner.plan import GpuPlan, make_plan
from sala_export.planner.published import PUBLISHED_CONFIG
from sala_export.specs import format_tokens

PRECISIONS = ("bf16", "int8")
PROMPTS = (128 << 10, 1 << 20)
PAGE = ROOT / "docs" / "gpus.md"


def planned(recipes: Sequence[GpuRecipe], precision: str) -> tuple[GpuPlan, ...]:
    """As each GPU is planned alone: an engine's memory does not depend on its GPU."""
    target = Target(name="all", gpus=tuple(recipes))
    request = EngineRequest.from_options(target, precision=precision, max_context=PROMPTS[-1])
    return make_plan(PUBLISHED_CONFIG, request, None, is_published=True).gpus


def cells(gpu: GpuPlan) -> list[str]:
    """The largest context, the time to the first token of each prompt, and tokens per second after the first prompt."""
    rows = {row.context: row for row in gpu.rows}
    first, last = (rows[length] for length in PROMPTS)
    times = [f"{row.prefill.predicted:.0f} s" if row.fits else "no" for row in (first, last)]
    rate = f"{1 / first.decode.predicted:.0f}" if first.fits else "no"
    return ["none" if gpu.largest_context is None else format_tokens(gpu.largest_context), *times, rate]


def row(*plans: GpuPlan) -> str:
    """The cells of a GPU in every precision."""
    recipe = plans[0].recipe
    name = recipe.gpu.removeprefix("NVIDIA ").removesuffix(" Edition")
    told = " | ".join(cell for plan in plans for cell in cells(plan))
    return f"| `{recipe.name}` | {name} | {recipe.memory_bytes / 2**30:.0f} GiB | {told} |"


def test_table_of_gpus_is_what_plan_predicts() -> None:
    recipes = sorted(map(load_recipe, recipe_paths()), key=lambda recipe: (recipe.machine != "x86_64", recipe.gpu))
    rows = list(map(row, *(planned(recipes, precision) for precision in PRECISIONS)))
    _, _, below = PAGE.read_text(encoding="utf-8").partition("|---|---|---|---|---|---|---|---|---|---|---|\n")
    found = list(takewhile(lambda line: line.startswith("|"), below.splitlines()))
    assert found == rows, "replace the rows of docs/gpus.md by:\n" + "\n".join(rows)
