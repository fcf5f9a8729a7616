"""What `--gpu` names: one GPU, or several that one engine serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, RequestError, SalaError
from .recipe import ComputeCapability, Recipe, group_paths, load_recipe, read_members


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The GPUs of one engine."""

    name: str
    """Of the recipe or the group; of a list, its recipes joined by `-`."""
    gpus: tuple[Recipe, ...]
    """At least one, each once."""

    @classmethod
    def of(cls, recipe: Recipe) -> Target:
        """A single GPU."""
        return cls(name=recipe.name, gpus=(recipe,))

    @property
    def compute_capabilities(self) -> tuple[ComputeCapability, ...]:
        """Each once, ascending."""
        return tuple(sorted({recipe.compute_capability for recipe in self.gpus}))

    @property
    def default_max_context(self) -> int:
        """The largest of the GPUs: smaller ones run the same engine with smaller caches. In tokens."""
        return max(recipe.default_max_context for recipe in self.gpus)

    @property
    def default_prefill_chunk(self) -> int:
        """The smallest of the GPUs, whose scratch memory every GPU must hold. In tokens."""
        return min(recipe.default_prefill_chunk for recipe in self.gpus)


def load_target(text: str) -> Target:
    """The target that `--gpu` names.

    Args: `text` is the name, alias or path (ending in `.toml`) of a recipe, that of a group, or a list of them with
        commas between.
    Raises: RequestError for an unknown or repeated name or a missing file, ConfigError naming file and field.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise RequestError(f"--gpu {text}: a name is missing; write a name, or several as in a6000,rtx5090")
    targets = [_load_part(part) for part in parts]
    gpus = [recipe for target in targets for recipe in target.gpus]
    _require_distinct(f"--gpu {text}", gpus, RequestError)
    return Target(name="-".join(target.name for target in targets), gpus=tuple(gpus))


def names_of(recipes: Sequence[Recipe], *, capabilities: bool = False) -> str:
    """Full names of GPUs for a sentence: `A`, `A and B`, `A, B and C`; with their `(SM86)` if asked for."""
    names = [f"{each.gpu} ({each.compute_capability.sm})" if capabilities else each.gpu for each in recipes]
    return " and ".join((*([", ".join(names[:-1])] if names[1:] else []), names[-1]))


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


def _require_distinct(where: str, gpus: Sequence[Recipe], error: type[SalaError]) -> None:
    names = [recipe.name for recipe in gpus]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise error(f"{where}: {twice} is named twice: name each GPU once")
