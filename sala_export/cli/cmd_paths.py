"""`sala-export paths`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from ..errors import BuildError, ConfigError, RequestError
from ..installation import onnxruntime_operators, plugin_library, recipe_folder, soname_shim, tensorrt_llm_module
from .options import json_option
from .output import print_json, table_console

_FINDERS = {
    "plugins": plugin_library,
    "onnxruntime-operators": onnxruntime_operators,
    "soname-shim": soname_shim,
    "recipes": recipe_folder,
    "tensorrt-llm": tensorrt_llm_module,
}
_WHAT = {
    "plugins": "the operators as plugins of TensorRT and TensorRT for RTX",
    "onnxruntime-operators": "the operators on a CPU, for register_custom_ops_library of ONNX Runtime",
    "soname-shim": "the name that the ONNX parser of TensorRT for RTX opens",
    "recipes": "the recipes of the GPUs",
    "tensorrt-llm": "the model for TensorRT-LLM, for its --custom_module_dirs",
}


def _choice(name: str) -> click.Option:
    help_text = f"Print only the path of {_WHAT[name]}."
    return click.Option([f"--{name}", _field(name)], is_flag=True, help=help_text)


def _field(name: str) -> str:
    return name.replace("-", "_")


@click.command()
@json_option
def paths(as_json: bool, **chosen: bool) -> None:
    """Show where the installed libraries and recipes are, for the command lines of other programs.

    With one of the options, one bare path is printed. For example:

    \b
      sala-export paths
      sala-export paths --plugins

    In a shell, $(...) around a command puts the path into another one, such as trtexec --dynamicPlugins=PATH.
    """
    names = [name for name in _FINDERS if chosen[_field(name)]]
    if len(names) > 1:
        raise RequestError(f"--{names[0]} and --{names[1]}: give one of them, or none for a table of all")
    if names:
        found = str(_FINDERS[names[0]]())
        if as_json:
            print_json({names[0]: found})
        else:
            click.echo(found)
        return
    all_paths = {name: _found(name) for name in _FINDERS}
    if as_json:
        print_json({"paths": {name: None if path is None else str(path) for name, path in all_paths.items()}})
        return
    table = Table("name", "path", "what", box=None)
    for name, path in all_paths.items():
        table.add_row(name, "not installed" if path is None else str(path), _WHAT[name])
    table_console().print(table)


paths.params.extend(_choice(name) for name in _FINDERS)


def _found(name: str) -> Path | None:
    try:
        return _FINDERS[name]()
    except (BuildError, ConfigError):
        return None
