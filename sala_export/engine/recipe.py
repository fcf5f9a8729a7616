"""GPU recipes: facts about a GPU that engines are built for, as data in `engines/*.toml`.

A file with only the key `members` is a group. It names recipes, and `--gpu` takes its name for all of them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from ..errors import ConfigError, RequestError, SalaError
from ..files import OpenedFile
from ..installation import recipe_folder
from ..specs import MOST_TOKENS, ComputeCapability, parse_tokens

_MOST_RECIPE_BYTES = 1 << 16
_MOST_DOTS_IN_A_LINE = 100
_MOST_BYTES_OF_A_GPU = 2**63 - 1
_LEAST_RATE, _MOST_RATE = 0.001, 1e9
"""What divides and multiplies into times that stay finite."""

_MEMBERS = "members"
_EXPECTED = "expected"


def _expected(what: str) -> WrapValidator:
    """Says of a value that its type does not take what was expected there."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            if error.errors()[0]["type"] == _EXPECTED:
                raise
            told = {"value": _shown(value), "what": what}
            raise PydanticCustomError(_EXPECTED, "is {value}, expected {what}", told) from None

    return WrapValidator(validate)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # a hexadecimal number of more digits than Python writes in decimal
        return "a number of thousands of digits"


def _parsed(parse: Callable[[str], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


_Text = Annotated[str, Strict(), Field(min_length=1), _expected("a string")]
_Texts = Annotated[tuple[Annotated[str, Strict(), Field(min_length=1)], ...], _expected("a list of strings")]
_Bytes = Annotated[
    int,
    Strict(),
    Field(gt=0, le=_MOST_BYTES_OF_A_GPU),
    _expected(f"a positive integer of at most {_MOST_BYTES_OF_A_GPU}"),
]
_Number = Annotated[
    float,
    Strict(),
    Field(ge=_LEAST_RATE, le=_MOST_RATE, allow_inf_nan=False),
    _expected(f"a positive number of {_LEAST_RATE} to {_MOST_RATE:.0f}"),
]
_Rates = Annotated[dict[str, _Number], _expected("a table of numbers by precision")]
_Tokens = Annotated[
    int,
    Strict(),
    Field(gt=0, le=MOST_TOKENS),
    _parsed(parse_tokens),
    _expected(f"a token count of at most {MOST_TOKENS}, as in 8192 or '1M'"),
]
_Capability = Annotated[ComputeCapability, InstanceOf(), _parsed(ComputeCapability.parse), _expected("a string")]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRecipe:
    """One GPU model. Its fields but the name are the keys of a recipe file; `load_recipe` checks them."""

    name: str
    """File name of the recipe without `.toml`."""
    gpu: _Text
    """Full name of the GPU, as its driver reports it, or of the board where drivers report a part of it."""
    aliases: _Texts
    compute_capability: _Capability
    memory_bytes: _Bytes
    """Total device memory that the driver reports."""
    reserve_bytes: _Bytes
    """Part of the memory that is left to the CUDA context, loaded kernels and other programs.

    Where the processors share it (a Jetson, a DGX Spark), also to the system and to the pages of the weights' files.
    """
    memory_gigabytes_per_second: _Number
    """Peak bandwidth of the device memory, decimal."""
    peak_tera_operations_per_second: _Rates
    """Dense peak rate of the tensor cores by precision. A multiply-add is two operations."""
    precisions: _Texts
    """Precisions that the GPU can run, whether or not this release builds them."""
    default_max_context: _Tokens
    """In tokens, as the next."""
    default_prefill_chunk: _Tokens
    machine: _Text = "x86_64"
    """Processors of the machines with this GPU, as `uname -m` calls them. A recipe may leave it out."""


_ADAPTER = TypeAdapter(GpuRecipe)
_KEYS = tuple(field.name for field in fields(GpuRecipe) if field.name != "name")
_REQUIRED = tuple(field.name for field in fields(GpuRecipe) if field.name != "name" and field.default is MISSING)


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

    Raises: RequestError for an unknown name (lists the single GPUs), a group, a list or a missing file, ConfigError
        naming file and field.
    """
    group = _path_of(name_or_path, group_paths())
    of = read_members(group) if group else recipe_paths() if "," in name_or_path else ()
    if of:
        raise RequestError(f"--gpu {name_or_path}: name one GPU of these: {', '.join(of)}")
    return _find_recipe(name_or_path, recipe_paths())


def _find_recipe(name_or_path: str, known: Iterable[str]) -> GpuRecipe:
    """Load the recipe of one GPU. Args: `known` are the names that an error lists."""
    paths = recipe_paths()
    path = _path_of(name_or_path, paths)
    if path is not None:
        return read_recipe(path)
    wanted = name_or_path.lower()
    for recipe in map(read_recipe, paths.values()):
        if wanted in recipe.aliases or wanted == recipe.gpu.lower():
            return recipe
    raise RequestError(
        f"--gpu {name_or_path}: unknown GPU; known are {', '.join(known)}, or give the path of a recipe ending in .toml"
    )


def _path_of(text: str, paths: Mapping[str, Path]) -> Path | None:
    return Path(text) if text.endswith(".toml") else paths.get(text.lower())


def read_recipe(path: Path) -> GpuRecipe:
    """Load the recipe file of one GPU. Raises: RequestError if it cannot be read, ConfigError naming file and field."""
    values = _read_toml(path)
    try:
        return _recipe(path.stem, values)
    except (ConfigError, RequestError) as error:
        raise ConfigError(f"{path}: {error}") from None


def read_members(path: Path) -> tuple[str, ...]:
    """The recipes that a group's file names. Empty for the file of a single GPU.

    Raises: RequestError if it cannot be read, ConfigError naming file and field.
    """
    values = _read_toml(path)
    if _MEMBERS not in values:
        return ()
    members = values[_MEMBERS]
    if len(values) > 1:
        raise ConfigError(f"{path}: {_MEMBERS} stands alone in the recipe of a group: remove the other keys")
    if not isinstance(members, list) or not members or not all(isinstance(name, str) and name for name in members):
        raise ConfigError(f"{path}: {_MEMBERS} is {_shown(members)}, expected a list of names of recipes")
    return tuple(members)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = OpenedFile.open(path, error=RequestError).read_all(_MOST_RECIPE_BYTES)
    except RequestError as error:
        raise RequestError(f"--gpu {path}: cannot read the recipe: {error}") from None
    for number, line in enumerate(text.split(b"\n"), start=1):
        # The time that tomllib takes for a dotted key grows with the square of its parts.
        if line.count(b".") > _MOST_DOTS_IN_A_LINE and not line.lstrip().startswith(b"#"):
            raise ConfigError(f"{path}: line {number} has more than {_MOST_DOTS_IN_A_LINE} dots: shorten its key")
    try:
        return tomllib.loads(text.decode())
    # A number of thousands of digits is a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(recipe_folder().glob("*.toml"))}


def _load_part(text: str) -> Target:
    groups = group_paths()
    path = _path_of(text, groups)
    members = read_members(path) if path is not None else ()
    if path is None or not members:
        return Target.of(_find_recipe(text, (*recipe_paths(), *groups)))
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


def _recipe(name: str, values: Mapping[str, Any]) -> GpuRecipe:
    for key in values:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.0)
            raise ConfigError(f"unknown key {key!r}, did you mean {near[0]!r}?")
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")
    try:
        recipe = _ADAPTER.validate_python({"name": name, **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))} {first['msg']}") from None
    _check_together(recipe)
    return recipe


def _check_together(recipe: GpuRecipe) -> None:
    if recipe.reserve_bytes >= recipe.memory_bytes:
        raise ConfigError("reserve_bytes leaves nothing of memory_bytes")
    unknown = [name for name in recipe.peak_tera_operations_per_second if name not in recipe.precisions]
    if unknown:
        raise ConfigError(f"peak_tera_operations_per_second.{unknown[0]} is not among precisions")
    if recipe.default_prefill_chunk > recipe.default_max_context:
        raise ConfigError("default_prefill_chunk is larger than default_max_context")
