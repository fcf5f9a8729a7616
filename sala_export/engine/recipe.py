"""GPU recipes: facts about a GPU that engines are built for, as data in `engines/*.toml`.

A file with only the key `members` is a group. It names recipes, and `--gpu` takes its name for all of them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RequestError, SalaError
from ..installation import recipe_folder
from ..specs import ComputeCapability, parse_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRecipe:
    """One GPU model. `load_recipe` loads it and checks every field."""

    name: str
    """File name of the recipe without `.toml`."""
    gpu: str
    """Full name of the GPU, as its driver reports it."""
    aliases: tuple[str, ...]
    compute_capability: ComputeCapability
    memory_bytes: int
    """Total device memory that the driver reports."""
    reserve_bytes: int
    """Part of the memory that is left to the CUDA context, loaded kernels and other programs."""
    memory_gigabytes_per_second: float
    """Peak bandwidth of the device memory, decimal."""
    peak_tera_operations_per_second: Mapping[str, float]
    """Dense peak rate of the tensor cores by precision. A multiply-add is two operations."""
    precisions: tuple[str, ...]
    """Precisions that the GPU can run, whether or not this release builds them."""
    default_max_context: int
    """Longest context in tokens, if `--max-context` is not given."""
    default_prefill_chunk: int
    """Tokens per prefill step, if `--prefill-chunk` is not given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The GPUs of one engine, as `--gpu` names them."""

    name: str
    """Name of the recipe or the group. For a list, the names of its recipes joined by `-`."""
    gpus: tuple[GpuRecipe, ...]
    """Recipes of the GPUs, at least one, each once."""

    @classmethod
    def of(cls, recipe: GpuRecipe) -> Target:
        """Make a target of a single GPU."""
        return cls(name=recipe.name, gpus=(recipe,))

    @property
    def compute_capabilities(self) -> tuple[ComputeCapability, ...]:
        """Compute capabilities of the GPUs, each once, ascending."""
        return tuple(sorted({recipe.compute_capability for recipe in self.gpus}))

    @property
    def default_max_context(self) -> int:
        """The largest default of the GPUs, in tokens. Smaller GPUs run the same engine with smaller caches."""
        return max(recipe.default_max_context for recipe in self.gpus)

    @property
    def default_prefill_chunk(self) -> int:
        """The smallest default of the GPUs, in tokens, because every GPU must hold the scratch memory of a chunk."""
        return min(recipe.default_prefill_chunk for recipe in self.gpus)


def load_target(text: str) -> Target:
    """Load the target that `--gpu` names.

    Args: `text` is the name, alias or path (ending in `.toml`) of a recipe or group, or several with commas between.
    Raises: RequestError for an unknown or repeated name or a missing file, ConfigError naming file and field.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise RequestError(f"--gpu {text}: a name is missing; write a name, or several as in a6000,rtx5090")
    targets = [_load_part(part) for part in parts]
    gpus = [recipe for target in targets for recipe in target.gpus]
    _require_distinct(f"--gpu {text}", gpus, RequestError)
    return Target(name="-".join(target.name for target in targets), gpus=tuple(gpus))


def names_of(recipes: Sequence[GpuRecipe], *, capabilities: bool = False) -> str:
    """Full names of GPUs for a sentence: `A`, `A and B`, `A, B and C`. With `capabilities`, each has its `(SM86)`."""
    names = [f"{each.gpu} ({each.compute_capability.sm})" if capabilities else each.gpu for each in recipes]
    return " and ".join((*([", ".join(names[:-1])] if names[1:] else []), names[-1]))


def recipe_paths() -> dict[str, Path]:
    """The recipes of single GPUs that come with the package, by name."""
    return {name: path for name, path in _shipped().items() if not read_members(path)}


def group_paths() -> dict[str, Path]:
    """The groups of recipes that come with the package, by name."""
    return {name: path for name, path in _shipped().items() if read_members(path)}


def load_recipe(name_or_path: str) -> GpuRecipe:
    """Load the recipe of one GPU by name or alias, or from a path that ends in `.toml`.

    Raises: RequestError for an unknown name (lists the known ones), a group or a missing file, ConfigError naming
        file and field.
    """
    if name_or_path.endswith(".toml"):
        return read_recipe(Path(name_or_path))
    wanted = name_or_path.lower()
    paths = recipe_paths()
    if wanted in paths:
        return read_recipe(paths[wanted])
    for path in paths.values():
        recipe = read_recipe(path)
        if wanted in recipe.aliases or wanted == recipe.gpu.lower():
            return recipe
    groups = group_paths()
    if wanted in groups:
        raise RequestError(f"--gpu {name_or_path}: name one GPU of these: {', '.join(read_members(groups[wanted]))}")
    raise RequestError(
        f"--gpu {name_or_path}: unknown GPU; known are {', '.join((*paths, *groups))}, or give the path of a recipe "
        "ending in .toml"
    )


def read_recipe(path: Path) -> GpuRecipe:
    """Load the recipe file of one GPU. Raises: RequestError if it cannot be read, ConfigError naming file and field."""
    fields = _read_toml(path)
    try:
        return _recipe(path.stem, fields)
    except (ConfigError, RequestError) as error:
        raise ConfigError(f"{path}: {error}") from None


def read_members(path: Path) -> tuple[str, ...]:
    """The recipes that a group's file names. Empty for the file of a single GPU.

    Raises: RequestError if it cannot be read, ConfigError naming file and field.
    """
    fields = _read_toml(path)
    if _MEMBERS not in fields:
        return ()
    members = fields[_MEMBERS]
    if len(fields) > 1:
        raise ConfigError(f"{path}: {_MEMBERS} stands alone in the recipe of a group: remove the other keys")
    if not isinstance(members, list) or not members or not all(isinstance(name, str) and name for name in members):
        raise ConfigError(f"{path}: {_MEMBERS} is {members!r}, expected a list of names of recipes")
    return tuple(members)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"--gpu {path}: cannot read the recipe: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(recipe_folder().glob("*.toml"))}


def _load_part(text: str) -> Target:
    path = Path(text) if text.endswith(".toml") else group_paths().get(text.lower())
    members = read_members(path) if path is not None else ()
    if path is None or not members:
        return Target.of(load_recipe(text))
    try:
        gpus = [load_recipe(member) for member in members]
    except RequestError as error:
        raise ConfigError(f"{path}: members: {error}") from None
    _require_distinct(f"{path}: members", gpus, ConfigError)
    return Target(name=path.stem, gpus=tuple(gpus))


def _require_distinct(where: str, gpus: Sequence[GpuRecipe], error: type[SalaError]) -> None:
    names = [recipe.name for recipe in gpus]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise error(f"{where}: {twice} is named twice: name each GPU once")


_MEMBERS = "members"

_FIELDS: dict[str, str] = {
    "gpu": "string",
    "aliases": "strings",
    "compute_capability": "string",
    "memory_bytes": "integer",
    "reserve_bytes": "integer",
    "memory_gigabytes_per_second": "number",
    "peak_tera_operations_per_second": "rates",
    "precisions": "strings",
    "default_max_context": "tokens",
    "default_prefill_chunk": "tokens",
}


def _recipe(name: str, fields: Mapping[str, Any]) -> GpuRecipe:
    for key in fields:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.0)
            raise ConfigError(f"unknown key {key!r}, did you mean {near[0]!r}?")
    missing = [key for key in _FIELDS if key not in fields]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")
    values = {key: _value(key, kind, fields[key]) for key, kind in _FIELDS.items()}
    values["compute_capability"] = ComputeCapability.parse(values["compute_capability"])
    if values["reserve_bytes"] >= values["memory_bytes"]:
        raise ConfigError("reserve_bytes leaves nothing of memory_bytes")
    unknown = [name for name in values["peak_tera_operations_per_second"] if name not in values["precisions"]]
    if unknown:
        raise ConfigError(f"peak_tera_operations_per_second.{unknown[0]} is not among precisions")
    if values["default_prefill_chunk"] > values["default_max_context"]:
        raise ConfigError("default_prefill_chunk is larger than default_max_context")
    return GpuRecipe(name=name, **values)


def _value(key: str, kind: str, value: Any) -> Any:
    """Check and convert one field."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    match kind:
        case "string" if isinstance(value, str) and value:
            return value
        case "strings" if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        case "integer" if number and isinstance(value, int):
            return value
        case "number" if number:
            return float(value)
        case "rates" if isinstance(value, dict):
            return {name: _value(f"{key}.{name}", "number", rate) for name, rate in value.items()}
        case "tokens" if number and isinstance(value, int):
            return value
        case "tokens" if isinstance(value, str):
            return parse_tokens(value)
    expected = {
        "string": "a string",
        "strings": "a list of strings",
        "integer": "a positive integer",
        "number": "a positive number",
        "rates": "a table of numbers by precision",
        "tokens": "a token count, as in 8192 or '1M'",
    }[kind]
    raise ConfigError(f"{key} is {value!r}, expected {expected}")
