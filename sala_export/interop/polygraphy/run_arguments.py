"""The option `--sala` of `polygraphy run`, which Polygraphy finds by the entry point of pyproject.toml.

This module is imported whenever `polygraphy run` starts, so it imports little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polygraphy.tools.args import ModelArgs, OnnxLoadArgs
from polygraphy.tools.args.base import BaseRunnerArgs
from polygraphy.tools.script import make_invocable


class SalaRunnerArgs(BaseRunnerArgs):
    """
    sala-export Inference: running graphs of sala-export with ONNX Runtime on the CPU.

    Depends on:

        - ModelArgs
        - OnnxLoadArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        return "ONNX Runtime with the operators of sala-export", "sala"

    def add_parser_args_impl(self) -> None:
        self.group.add_argument(
            "--sala-bundle",
            help="Bundle whose weights the graph takes. By default the one in which the graph lies",
            default=None,
        )

    def parse_impl(self, args: Any) -> None:
        self.bundle = args.sala_bundle

    def add_to_script_impl(self, script: Any) -> None:
        loading, path = self.arg_groups[OnnxLoadArgs], self.arg_groups[ModelArgs].path
        bundle = self.bundle
        model = path
        if loading.must_use_onnx_loader():
            model = loading.add_to_script(script)
            bundle = bundle or _bundle_of(path)
        script.add_import(imports=["OnnxrtRunner"], frm="polygraphy.backend.onnxrt")
        script.add_import(imports=["SessionFromSalaOnnx"], frm="sala_export.interop.polygraphy.session")
        session = script.add_loader(make_invocable("SessionFromSalaOnnx", model, bundle=bundle), "sala_session")
        script.add_runner(make_invocable("OnnxrtRunner", session, name=f"sala-{Path(path).stem}"))


def argument_groups() -> list[Any]:
    """What the entry point names: groups of options that `polygraphy run` takes besides its own."""
    return [SalaRunnerArgs()]


def _bundle_of(path: str) -> str | None:
    from .graphs import bundle_of

    found = bundle_of(Path(path))
    return None if found is None else str(found)
