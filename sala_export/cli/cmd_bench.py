"""`sala-export bench`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..errors import printable_text
from ..specs import RUNTIMES, Precision
from .options import (
    SINGLE_GPU,
    BundlePath,
    CompletedName,
    TokenList,
    Tokens,
    cpu_math_option,
    json_option,
    weights_option,
)
from .output import print_json


@click.command()
@click.argument("model", shell_complete=BundlePath().shell_complete)
@weights_option
@click.option(
    "--context",
    type=TokenList(),
    help="Prompt lengths to measure, in tokens.  [default: 64K,128K on a GPU, 1K,2K on a CPU]",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens to generate after each prompt.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Number of runs at each length."
)
@click.option("--chunk-tokens", type=Tokens(), help="Tokens per prefill step.  [default: the engine's]")
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="auto",
    show_default=True,
    help="Runtime to measure. torch also takes checkpoints.",
)
@cpu_math_option
@click.option("--device", help="Device for the torch runtime: cuda, cuda:N or cpu.  [default: a GPU if there is one]")
@click.option(
    "--precision",
    type=CompletedName(lambda: (Precision.FP32, Precision.BF16, Precision.FP16)),
    help="Precision for the torch runtime: fp32, bf16 or fp16.  [default: the model's, fp32 on the CPU]",
)
@click.option(
    "--gpu-recipe",
    type=SINGLE_GPU,
    help="GPU recipe to compute the floor from.  [default: the recipe of this GPU]",
)
@json_option
@click.pass_obj
def bench(
    console: Console,
    /,
    model: str,
    weights: Path | None,
    context: tuple[int, ...] | None,
    new_tokens: int,
    repeats: int,
    chunk_tokens: int | None,
    runtime: str,
    cpu_math: str | None,
    device: str | None,
    precision: str | None,
    gpu_recipe: str | None,
    as_json: bool,
) -> None:
    """Measure time to the first token, decode rate and memory.

    MODEL is a bundle, or a checkpoint directory or hub id with --runtime torch. Prompts are random tokens at batch 1.
    If a context does not fit, the command says so before it measures anything. Each length begins with a word about how
    long its runs will take. For example:

    \b
      sala-export bench sala.sala
      sala-export bench sala.sala --context 256K,512K --repeats 1
    """
    from ..benchmark.measure import BenchmarkRequest
    from ..benchmark.report import describe, table
    from ..benchmark.run import BenchmarkSubject, run_benchmark

    report = run_benchmark(
        BenchmarkSubject(
            model=model,
            weights=weights,
            runtime=runtime,
            cpu_math=cpu_math,
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
        click.echo(printable_text(table(report)))
