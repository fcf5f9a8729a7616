"""`sala-export bench`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..specs import RUNTIMES
from .options import TokenList, Tokens, weights_option
from .output import print_json


@click.command()
@click.argument("model")
@weights_option
@click.option(
    "--context", type=TokenList(), default="64K,128K", show_default=True, help="Lengths of the prompts, in tokens."
)
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate after each."
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each length.")
@click.option("--chunk-tokens", type=Tokens(), help="Tokens of one prefill step.  [default: the engine's]")
@click.option(
    "--runtime", type=click.Choice(RUNTIMES), default="auto", show_default=True, help="torch also takes checkpoints."
)
@click.option("--device", help="Of the torch runtime: cuda, cuda:N or cpu.  [default: a GPU if there is one]")
@click.option("--precision", help="Of the torch runtime: fp32, bf16 or fp16.  [default: the model's; on the CPU fp32]")
@click.option("--gpu-recipe", help="Recipe of the GPU whose floor to show.  [default: that of this GPU, if any]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def bench(
    console: Console,
    /,
    model: str,
    weights: Path | None,
    context: tuple[int, ...],
    new_tokens: int,
    repeats: int,
    chunk_tokens: int | None,
    runtime: str,
    device: str | None,
    precision: str | None,
    gpu_recipe: str | None,
    as_json: bool,
) -> None:
    """Measure time to the first token, decode rate and memory of a bundle, or a checkpoint on the torch runtime.

    Prompts are random tokens at batch 1. Contexts that do not fit are refused before anything is measured.
    """
    from ..benchmark.measure import BenchmarkRequest
    from ..benchmark.report import describe, table
    from ..benchmark.run import BenchmarkSubject, run_benchmark

    report = run_benchmark(
        BenchmarkSubject(
            model=model,
            weights=weights,
            runtime=runtime,
            device=device,
            precision=precision,
            gpu_recipe=gpu_recipe,
        ),
        BenchmarkRequest(contexts=context, new_tokens=new_tokens, repeats=repeats, chunk_tokens=chunk_tokens),
        lambda line: console.print(line, soft_wrap=True),
    )
    if as_json:
        print_json(describe(report))
    else:
        click.echo(table(report))
