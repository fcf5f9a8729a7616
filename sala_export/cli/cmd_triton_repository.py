"""`sala-export triton-repository`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .options import BundlePath, Bytes, FiniteRange, output_option, write_options
from .output import progress_display
from .sampling_options import speculation_option
from .serving_options import answer_limits
from .text_model import runtime_options

_GPU = re.compile(r"[0-9]{1,4}")


class GpuNumbers(click.ParamType[tuple[int, ...]]):
    """Numbers of GPUs, such as 0,1."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(_GPU.fullmatch(part) for part in parts):
            shown = value if len(value) <= 40 else f"{value[:40]}..."
            self.fail(f"{shown!r} is no list of numbers up to 9999: write 0 or 0,1.", param, ctx)
        return tuple(map(int, parts))


@click.command()
@click.argument("bundle", type=BundlePath())
@output_option(True, "Model repository to write into. Other models that are there stay.")
@click.option("--name", default="sala", show_default=True, help="Name by which clients ask for the model.")
@click.option(
    "--gpus",
    type=GpuNumbers(),
    default=(),
    help="Numbers of GPUs that hold a copy of the model each, e.g. 0,1.  [default: one copy, where the runtime likes]",
)
@click.option(
    "--sequence-batching",
    is_flag=True,
    help="Let the server lead the turns of a conversation to the copy that has its state. Then every request needs a "
    "sequence id. You need this with several GPUs.",
)
@click.option(
    "--max-idle",
    type=FiniteRange(min=0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds after which a conversation ends that nobody continues.",
)
@click.option("--chat-template", metavar="NAME", help="The chat template of this name, if there are several.")
@click.option("--state-store", help="Folder of the server's machine where long contexts are kept on disk.")
@click.option("--state-store-bytes", type=Bytes(), help="Largest size of the store, e.g. 200G.")
@speculation_option
@answer_limits
@runtime_options
@write_options
@click.pass_obj
def triton_repository(
    console: Console,
    /,
    bundle: Path,
    output: Path,
    name: str,
    gpus: tuple[int, ...],
    sequence_batching: bool,
    link: bool,
    force: bool,
    **parameters: Any,
) -> None:
    """Write a bundle as a model for Triton Inference Server.

    The bundle lies in the repository, so you can bring it to another machine. For example:

    \b
      sala-export triton-repository sala.sala -o repository
      tritonserver --model-repository repository
      curl http://127.0.0.1:8000/v2/models/sala/generate -d '{"text_input": "A state is", "max_tokens": 20}'
    """
    from ..interop.triton_server.options import ModelParameters
    from ..interop.triton_server.repository import RepositoryRequest, write_repository

    given = {key: value for key, value in parameters.items() if value is not None}
    request = RepositoryRequest(
        bundle=bundle,
        output=output,
        name=name,
        parameters=ModelParameters(bundle=bundle.resolve().name, **given),
        gpus=gpus,
        sequence_batching=sequence_batching,
        link=link,
        force=force,
    )
    with progress_display(console) as on_progress:
        folder = write_repository(request, on_progress)
    click.echo(str(folder))
