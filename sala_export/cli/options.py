"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..checkpoint.config import DEFAULT_MODEL
from ..errors import RequestError
from ..specs import BUILT_PRECISIONS, CpuMath, one_of, parse_bytes, parse_tokens

Command = Callable[..., Any]


class Tokens(click.ParamType[int]):
    """A token count such as 8192, 64K or 1M."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_tokens(value)
        except RequestError as error:
            self.fail(str(error), param, ctx)


class Bytes(click.ParamType[int]):
    """A size in bytes such as 200G or 500M."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except RequestError as error:
            self.fail(str(error), param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers, of which NaN is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return float(number)


MOST_COUNT = 2**63 - 1
"""The largest number that the runtimes count to."""

SEED = click.IntRange(min=0, max=2**64 - 1)


class TokenList(click.ParamType[tuple[int, ...]]):
    """Token counts such as 64K,128K,1M."""

    name = "tokens,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(parse_tokens(part) for part in value.split(","))
        except RequestError as error:
            self.fail(str(error), param, ctx)


class GpuNames(click.ParamType[str]):
    """Names of GPUs with commas between, whose last one a shell completes."""

    name = "text"

    def __init__(self, also: Sequence[str] = ()) -> None:
        """Args: also: further names that the command takes alone."""
        self._also = also

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ..engine.recipe import group_paths, recipe_paths

        before, comma, last = incomplete.rpartition(",")
        names = sorted([*recipe_paths(), *group_paths(), *(() if comma else self._also)])
        return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]


class CompletedName(click.ParamType[str]):
    """A name that a shell completes. The command checks it."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        """Args: names: gives the names, and is called only when a shell asks."""
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]


def _single_gpus() -> Iterable[str]:
    from ..engine.recipe import recipe_paths

    return recipe_paths()


SINGLE_GPU = CompletedName(_single_gpus)


class BundlePath(click.Path):
    """A path of which a shell completes bundles and the folders on the way to them."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ..bundle.manifest import MANIFEST_FILE

        before, slash, last = incomplete.rpartition("/")
        folder = Path(before + slash).expanduser()
        found = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
        return [
            CompletionItem(f"{before}{slash}{name}" + ("" if (folder / name / MANIFEST_FILE).is_file() else "/"))
            for name in found
            if name.startswith(last) and (last or not name.startswith("."))
        ]


CPU = "cpu"
"""What `--gpu` takes for a machine without a GPU."""


def is_cpu(gpu: str) -> bool:
    """Tell if the text of `--gpu` asks for a CPU. Raises: RequestError if that is one of several names."""
    names = [name.strip().lower() for name in gpu.split(",")]
    if CPU in names and len(names) > 1:
        raise RequestError(f"--gpu {gpu}: {CPU} stands alone, give it without other names")
    return names == [CPU]


def require_no_options(names: Iterable[str]) -> None:
    """Refuse parameters of this command, by their Python names, that mean nothing for its `--gpu`.

    Raises: RequestError naming those that were given.
    """
    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        options = " and no ".join(f"--{name.replace('_', '-')}" for name in given)
        raise RequestError(
            f"{context.info_name} --gpu {context.params['gpu']} takes no {options}: "
            f"leave {'it' if len(given) == 1 else 'them'} out"
        )


def gpu_option(purpose: str, *, takes_cpu: bool = False) -> Callable[[Command], Command]:
    """Add `--gpu`, one or several.

    Args: `purpose` is what the command does for them, e.g. `build`. With `takes_cpu` the command also takes `CPU`.
    """
    return click.option(
        "--gpu",
        type=GpuNames((CPU,) if takes_cpu else ()),
        required=True,
        help=f"GPU to {purpose} for: a name such as rtx5090, several such as a6000,rtx5090, rtx for every RTX card "
        f"from Ampere on, {CPU + ' for a machine without a GPU, ' if takes_cpu else ''}or the path of your own "
        "recipe (.toml).",
    )


complete_folder = click.Path(file_okay=False).shell_complete
"""For an argument that also takes a hub id: lets the shell complete folders."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
layers_option = click.option("--layers", type=click.IntRange(min=1), help="Use only the first N layers.")
revision_option = click.option("--revision", help="Branch, tag or commit of the model on the hub.")
model_option = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    shell_complete=complete_folder,
    help="Checkpoint directory in Hugging Face layout, or a hub id.",
)
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Run the weights of this checkpoint, for example your fine-tune, on the bundle's engine.",
)
cpu_math_option = click.option(
    "--cpu-math",
    type=click.Choice([math.value for math in CpuMath]),
    help="Arithmetic on a CPU: exact, in 32 bits, or fast, with 16-bit inputs and caches and 8-bit inputs of int4 "
    "products.  [default: exact]",
)
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists already.")


def model_options(command: Command) -> Command:
    """Add `--model`, `--revision` and `--layers`."""
    return model_option(revision_option(layers_option(command)))


def engine_options(command: Command) -> Command:
    """Add `--precision`, `--max-context`, `--prefill-chunk` and `--max-batch`."""
    recipes = "[default: from the GPU's recipe]"
    for option in (
        click.option(
            "--max-batch",
            type=int,
            default=1,
            show_default=True,
            help="Sessions that one step may serve, with --max-context tokens together.",
        ),
        click.option("--prefill-chunk", type=Tokens(), help=f"Tokens per prefill step.  {recipes}"),
        click.option("--max-context", type=Tokens(), help=f"Longest context in tokens, e.g. 1M.  {recipes}"),
        click.option(
            "--precision",
            type=CompletedName(lambda: BUILT_PRECISIONS),
            help=f"{one_of(BUILT_PRECISIONS)}.  [default: the precision of a quantised checkpoint, else bf16]",
        ),
    ):
        command = option(command)
    return command


def write_options(command: Command) -> Command:
    """Add `--link/--copy` and `--force`."""
    text = (
        "How the weight files get into the output. A copy takes no room on btrfs and xfs, where it shares blocks with "
        "the checkpoint. A hard link takes none anywhere, but onnx.load refuses it.  [default: --copy]"
    )
    return click.option("--link/--copy", default=False, help=text)(force_option(command))


def output_option(required: bool, text: str) -> Callable[[Command], Command]:
    """Add `-o/--output`."""
    return click.option("-o", "--output", type=click.Path(path_type=Path), required=required, help=text)
