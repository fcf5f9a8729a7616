"""The `sala-export` command.

Exit codes: 0 after success, 1 if a stage failed (the message names its log), 2 after bad input (nothing was written,
unless a state was asked for), 129 if its terminal was lost, 130 if interrupted, 143 if terminated, 141 if the reader of
standard output went away.
"""

from __future__ import annotations

import errno
import sys

import click

from ..errors import SalaError, printable
from ..extras import extras_named
from ..installation import VERSION
from .cmd_bench import bench
from .cmd_build import build
from .cmd_chat import chat
from .cmd_doctor import doctor
from .cmd_eval import evaluate
from .cmd_export import export
from .cmd_generate import generate
from .cmd_inspect import inspect
from .cmd_kernels import kernels
from .cmd_paths import paths
from .cmd_plan import plan
from .cmd_polygraphy_script import polygraphy_script
from .cmd_quantize import quantize
from .cmd_random_checkpoint import random_checkpoint
from .cmd_serve import serve
from .cmd_tokenize import detokenize, tokenize
from .cmd_triton_repository import triton_repository
from .cmd_trtexec import trtexec
from .cmd_verify import verify
from .output import show_log, stderr_console
from .signals import exit_code_of_signal, interrupt_work, leave_at_once, was_interrupted
from .streams import OutputError, discard_output


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="sala-export")
@click.option("-v", "--verbose", count=True, help="Show progress messages. Repeat for more detail.")
@click.pass_context
def cli(context: click.Context, verbose: int) -> None:
    """Turn a MiniCPM-SALA checkpoint into ONNX graphs and a TensorRT engine, and run the result.

    For example, see what fits your GPU, build for it, and ask a question:

    \b
      sala-export plan --gpu rtx5090
      sala-export build --gpu rtx5090 -o sala.sala
      sala-export generate sala.sala --chat --prompt "What is a state?"

    The exit code is 0 after success, 1 if a stage failed, 2 after bad input, 130 after Ctrl-C, and 141 if
    the reader of the output went away.
    """
    context.obj = stderr_console()
    show_log(context.obj, verbose)


_COMMANDS = (
    *(
        plan,
        quantize,
        build,
        verify,
        generate,
        chat,
        serve,
        triton_repository,
        tokenize,
        detokenize,
        bench,
        evaluate,
        inspect,
        export,
        kernels,
        doctor,
        paths,
        polygraphy_script,
        trtexec,
    ),
    random_checkpoint,
)
for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line of this process and leave with its exit code. `start.main` has prepared the process."""
    try:
        interrupt_work()
        code = run(sys.argv[1:])
        leave_at_once()
    except KeyboardInterrupt:  # while the end of another one was told
        leave_at_once()
        code = exit_code_of_signal()
    if was_interrupted():  # a pipe that nobody reads must not hold the end up
        discard_output()
    try:
        sys.stdout.flush()
    except OutputError:  # told already, or less important than what was
        discard_output()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return the exit code."""
    try:
        with extras_named():
            result = cli.main(args=arguments, prog_name="sala-export", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except OutputError as error:
        return error.exit_code if error.reader_is_gone else _fail(str(error), error.exit_code)
    except SalaError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", exit_code_of_signal())
    except OSError as error:
        hint = ": free some space, or choose another --output" if error.errno == errno.ENOSPC else ""
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}{hint}", 1)
    except MemoryError:
        return _fail("there is not enough memory: end other programs, or choose a smaller model or context", 1)
    except Exception:
        if not was_interrupted():
            raise
        # A library turned the exception of the signal into one of its own.
        return _fail("interrupted", exit_code_of_signal())


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    return code
