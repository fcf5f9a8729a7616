"""What the package uses of TensorRT-LLM is what `interface.toml` lists, and the fakes have exactly these signatures."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_tensorrt_llm import MODULES, SHELL

from sala_export import tensorrt_llm

PACKAGE = Path(tensorrt_llm.__file__).parent
INTERFACE = tomllib.loads((Path(__file__).parent / "interface.toml").read_text(encoding="utf-8"))
FUNCTIONS = {f"{each['module']}:{each['name']}": each["parameters"] for each in INTERFACE["function"]}
THEIRS = {"attn_metadata", "metadata", "model_config", "request", "scheduled_batch", "quant"}
"""Variables of the package that hold objects of TensorRT-LLM."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name in SHELL:
        yield name, ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def chain(node: ast.expr) -> str | None:
    """The dotted name of an attribute, `super().NAME` too. None if it begins with anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
        return "super()"
    if isinstance(node, ast.Attribute) and (before := chain(node.value)):
        return f"{before}.{node.attr}"
    return None


def chains(tree: ast.AST) -> set[str]:
    """The longest chains of attributes."""
    found = {text for node in ast.walk(tree) if isinstance(node, ast.Attribute) and (text := chain(node))}
    return {text for text in found if not any(other.startswith(f"{text}.") for other in found)}


def own_names(node: ast.ClassDef) -> set[str]:
    """What a class defines: methods, fields, and what it assigns to itself."""
    methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    fields = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    stored = {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    }
    return methods | fields | stored


def parameters(function: object) -> str:
    """The parameters of a function as `interface.toml` writes them: `a, b=, *, c, **d`."""
    found, starred = [], False
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            found.append("*")
            starred = True
        prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        found.append(prefix + parameter.name + ("" if parameter.default is parameter.empty else "="))
    return ", ".join(found)


def test_imports_are_those_of_the_table() -> None:
    imported = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorrt_llm":
                imported |= {f"{node.module}:{name.name}" for name in node.names}
            assert not (isinstance(node, ast.Import) and any("tensorrt_llm" in name.name for name in node.names))
    assert imported == set(INTERFACE["imports"]["names"])
    offered = {f"{module}:{each.__name__}" for module, contents in MODULES.items() for each in contents}
    # `_util` is imported as a module, for its function is replaced there.
    util = "tensorrt_llm._torch.pyexecutor"
    assert offered - imported == {f"{util}._util:get_kv_cache_manager_cls"}
    assert imported - offered == {f"{util}:_util"}


def test_other_modules_of_the_package_import_no_tensorrt_llm() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if path.stem not in SHELL]
    assert len(others) > 6
    for path in others:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.lstrip().startswith(("import tensorrt_llm", "from tensorrt_llm"))]


def test_attributes_are_those_of_the_table() -> None:
    found = set()
    for name, tree in trees():
        found |= {text for text in chains(tree) if text.split(".")[0] in {*THEIRS, "_util"}}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and name == "cache_manager":
                texts = {text for text in chains(node) if text.split(".")[0] in ("self", "super()")}
                names = {text.split(".")[1] for text in texts if text.startswith("self")}
                found |= {f"manager.{each}" for each in names - own_names(node)}
                found |= {f"manager.{text.split('.')[1]}" for text in texts if text.startswith("super()")}
        found |= {f"manager.{text.split('.')[1]}" for text in chains(tree) if text.startswith("manager.")}
    ours = {"manager.layout", "manager.page_slots", "manager.prompt_length", "manager.sparse_pool", "manager.__init__"}
    assert found - ours == set(INTERFACE["attributes"]["names"])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_fakes_have_the_signatures_of_the_table(function: str) -> None:
    module, _, path = function.partition(":")
    name, _, method = path.partition(".")
    (offered,) = [each for each in MODULES[module] if each.__name__ == name]
    # The package adds to these, and replaces this one.
    target = inspect.unwrap(offered) if not method else inspect.getattr_static(offered, method)
    assert parameters(getattr(target, "__func__", target)) == FUNCTIONS[function]
