"""`sala-export serve`"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..errors import RequestError
from .cmd_build import build_request
from .generate_store import open_store
from .options import CPU, BundlePath, Bytes, GpuNames, weights_option
from .output import progress_display
from .sampling_options import speculation_option
from .serving_options import answer_limits
from .text_model import load_weights, open_text_model, runtime_options, show_runtime

if TYPE_CHECKING:
    from ..serving.run import Server
    from ..serving.settings import Settings


def _limits(command: Any) -> Any:
    """Add the options that keep clients from taking all of the machine."""
    for option in (
        click.option(
            "--drain-seconds",
            type=click.IntRange(min=0),
            default=30,
            show_default=True,
            help="Time that answers get to end after SIGTERM or Ctrl-C. A second Ctrl-C ends them at once.",
        ),
        click.option(
            "--max-connections",
            type=click.IntRange(min=1),
            default=512,
            show_default=True,
            help="Connections that may be open at once, those whose requests wait included.",
        ),
        click.option("--max-body", type=Bytes(), default="32M", show_default=True, help="Largest body of a request."),
    ):
        command = option(command)
    return command


def _access(command: Any) -> Any:
    """Add the options that say who may use the server."""
    for option in (
        click.option(
            "--cors-origin",
            multiple=True,
            help="Let pages of this origin use the server, e.g. https://example.com. You can repeat the option.",
        ),
        click.option(
            "--allow-host",
            multiple=True,
            help="Answer requests to this name. You need it behind a proxy. You can repeat the option.",
        ),
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path),
            help="File with a key on each line. Clients must send one of them. Limits may stand behind a key: "
            "KEY contexts=8 context-tokens=4M.",
        ),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
        ),
        click.option(
            "--host",
            default="127.0.0.1",
            show_default=True,
            help="Address to listen on. 0.0.0.0 lets other machines in: give --api-key-file, too.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=BundlePath())
@click.option(
    "--gpu",
    type=GpuNames((CPU,)),
    help="Build a bundle for these cards first, e.g. rtx, or cpu. BUNDLE is then a checkpoint directory or a hub id. "
    "If its bundle is in this folder already, that one is served.",
)
@weights_option
@_access
@click.option(
    "--model-name",
    multiple=True,
    help="Name by which clients ask for the model. You can repeat the option.  [default: the name of the bundle]",
)
@click.option(
    "--state-store",
    type=click.Path(path_type=Path),
    help="Folder where long contexts are kept, so that a later start of the server goes on from them.",
)
@click.option("--state-store-bytes", type=Bytes(), help="Largest size of the store, e.g. 200G.")
@click.option(
    "--wait-for-store",
    is_flag=True,
    help="End an answer when its context is in the store, so that a kill right behind it loses nothing.",
)
@click.option("--chat-template", metavar="NAME", help="The chat template of this name, if there are several.")
@click.option(
    "--tool-parser",
    type=click.Choice(["auto", "minicpm4", "minicpm5", "hermes", "none"]),
    default="auto",
    show_default=True,
    help="Form in which the model thinks and calls tools. auto reads it off the chat template.",
)
@speculation_option
@_limits
@answer_limits
@runtime_options
@click.pass_obj
def serve(
    console: Console,
    /,
    bundle: Path,
    gpu: str | None,
    weights: Path | None,
    runtime: str,
    cpu_math: str | None,
    host: str,
    port: int,
    state_store: Path | None,
    state_store_bytes: int | None,
    drain_seconds: int,
    **options: Any,
) -> None:
    """Serve a model over HTTP, for every client of OpenAI's API.

    A text is read once: later requests with the same beginning go on where it ends. With --gpu a checkpoint is built
    first. For example:

    \b
      sala-export serve sala.sala
      curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"model": "sala", "messages": [{"role": "user", "content": "What is a state?"}]}'
      sala-export serve openbmb/MiniCPM-SALA --gpu rtx5090 --max-context 1M --state-store states
    """
    from ..serving.log import log_each_request
    from ..serving.run import reserve, serve, url_of
    from ..serving.service import with_cache_limit
    from ..serving.settings import is_loopback

    store = open_store(state_store, state_store_bytes, load_state=None)
    if store is None and options["wait_for_store"]:
        raise RequestError("--wait-for-store waits until a context is stored: give --state-store DIR, too")
    with reserve(host, port) as listener:
        if gpu is not None:
            bundle = _built(console, bundle, gpu, options)
        settings = _settings(bundle, host, options)
        source, tokenizer = open_text_model(bundle, runtime=runtime, weights=weights)
        model = load_weights(console, source, tokenizer, runtime=runtime, cpu_math=cpu_math)
        show_runtime(console, model, source)
        settings = with_cache_limit(settings, model)

        log_each_request()

        def on_ready(server: Server) -> None:
            reach = "this machine alone can reach it" if is_loopback(host) else f"listens on {host}"
            line = f"serves {settings.model_names[0]} at {url_of(listener)} ({reach}). Ctrl-C ends it."
            console.print(line, soft_wrap=True)
            if not is_loopback(host) and not settings.keys:
                line = "warning: whoever reaches this machine can use the model: give --api-key-file"
                console.print(line, soft_wrap=True)

        asyncio.run(serve(model, settings, listener, store=store, drain_seconds=drain_seconds, on_ready=on_ready))


def _built(console: Console, model: Path, gpu: str, options: dict[str, Any]) -> Path:
    """The bundle of a model for some cards, which is built if it is not in this folder."""
    from ..serving.settings import MAX_SESSIONS

    # A step of the new engine serves as many sessions as the server answers at once.
    most = options["max_sessions"] or MAX_SESSIONS
    request = build_request(gpu, str(model), max_batch=most, max_context=options["max_context"])  # a CPU takes any
    if request.output.exists():
        console.print(f"{request.output} is there already, so nothing is built", soft_wrap=True)
        return request.output
    from ..building.pipeline import build_bundle

    with progress_display(console) as on_progress:
        return build_bundle(request, on_progress).directory


def _settings(bundle: Path, host: str, options: dict[str, Any]) -> Settings:
    from ..serving.settings import LOOPBACK_HOSTS, Keys, Settings, is_loopback

    key_file, hosts = options["api_key_file"], options["allow_host"]
    keys = Keys(()) if key_file is None else Keys.read(key_file)
    # A key tells who calls. Without one, a page of a stranger must not reach this machine by a name of its own.
    own = f"[{host}]" if ":" in host else host
    names = (*LOOPBACK_HOSTS, own, *hosts) if is_loopback(host) and not keys else hosts
    return Settings(
        model_names=options["model_name"] or (bundle.resolve().name.removesuffix(".sala"),),
        keys=keys,
        hosts=tuple(name.lower() for name in names),
        cors_origins=options["cors_origin"],
        max_sessions=options["max_sessions"],
        max_waiting=options["max_waiting"],
        max_wait=options["max_wait"],
        max_context=options["max_context"],
        max_contexts=options["max_contexts"],
        max_cache_bytes=options["max_cache"],
        waits_for_store=options["wait_for_store"],
        speculation=options["speculation"],
        default_max_tokens=options["max_tokens"],
        max_body_bytes=options["max_body"],
        max_connections=options["max_connections"],
        tool_parser=options["tool_parser"],
        chat_template=options["chat_template"],
    )
