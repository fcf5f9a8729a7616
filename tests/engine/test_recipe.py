"""Recipes: those that ship, and every way in which a recipe can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from sala_export.engine.recipe import ComputeCapability, load_recipe, read_recipe, recipe_paths
from sala_export.errors import ConfigError, RequestError

VALID = {
    "gpu": '"Card"',
    "aliases": "[]",
    "compute_capability": '"8.6"',
    "memory_bytes": "1_000_000",
    "reserve_bytes": "1000",
    "memory_gigabytes_per_second": "700.5",
    "precisions": '["bf16", "int8"]',
    "default_max_context": '"64K"',
    "default_prefill_chunk": "2048",
    "peak_tera_operations_per_second": "{ bf16 = 10 }",
}


def write(folder: Path, **changes: str | None) -> Path:
    fields = {key: value for key, value in (VALID | changes).items() if value is not None}
    path = folder / "mine.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in fields.items()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "sm", "gigabytes", "bandwidth", "bf16"),
    [
        ("rtx5090", "SM120", 32, 1792, 209.5),
        ("a6000", "SM86", 48, 768, 154.8),
        ("rtx4090", "SM89", 24, 1008, 165.2),
        ("a6000d", "SM120", 84, 1398, 148),
    ],
)
def test_shipped_recipe_has_published_numbers(
    name: str, sm: str, gigabytes: int, bandwidth: float, bf16: float
) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.compute_capability.sm == sm
    assert gigabytes * 10**9 <= recipe.memory_bytes < gigabytes * 2**30
    assert recipe.memory_gigabytes_per_second == bandwidth
    assert recipe.peak_tera_operations_per_second["bf16"] == bf16
    assert recipe.default_prefill_chunk == 8192


def test_every_shipped_recipe_loads_and_no_name_is_given_twice() -> None:
    recipes = [read_recipe(path) for path in recipe_paths().values()]
    names = [name for recipe in recipes for name in (recipe.name, recipe.gpu.lower(), *recipe.aliases)]
    assert len(recipes) >= 4
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["RTX5090", "5090", "nvidia geforce rtx 5090"])
def test_recipe_is_found_by_alias_and_full_name(name: str) -> None:
    assert load_recipe(name).name == "rtx5090"


def test_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(
        RequestError, match=r"--gpu h100: unknown GPU; known are a6000, a6000d, rtx4090, rtx5090"
    ) as error:
        load_recipe("h100")
    assert error.value.exit_code == 2


def test_recipe_of_the_user_is_read_from_its_path(tmp_path: Path) -> None:
    recipe = load_recipe(str(write(tmp_path)))
    assert recipe.name == "mine"
    assert recipe.compute_capability == ComputeCapability(8, 6)
    assert (recipe.default_max_context, recipe.default_prefill_chunk) == (65536, 2048)
    assert recipe.precisions == ("bf16", "int8")


def test_recipe_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--gpu .*none\.toml: cannot read the recipe: No such file"):
        load_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_byte": "1"}, r"unknown key 'memory_byte', did you mean 'memory_bytes'\?"),
        ({"gpu": None, "aliases": None}, r"missing gpu, aliases"),
        ({"gpu": "3"}, r"gpu is 3, expected a string"),
        ({"aliases": '"x"'}, r"aliases is 'x', expected a list of strings"),
        ({"compute_capability": '"sm_86"'}, r"compute_capability is 'sm_86', expected major\.minor"),
        ({"memory_bytes": "1.5"}, r"memory_bytes is 1\.5, expected a positive integer"),
        ({"memory_bytes": "true"}, r"memory_bytes is True, expected a positive integer"),
        ({"memory_gigabytes_per_second": "-1"}, r"memory_gigabytes_per_second is -1, expected a positive number"),
        ({"reserve_bytes": "1_000_000"}, r"reserve_bytes leaves nothing of memory_bytes"),
        ({"peak_tera_operations_per_second": "{ bf16 = 'x' }"}, r"per_second\.bf16 is 'x', expected a positive number"),
        ({"peak_tera_operations_per_second": "{ fp8 = 1 }"}, r"per_second\.fp8 is not among precisions"),
        ({"default_max_context": '"64Q"'}, r"'64Q' is not a token count"),
        ({"default_prefill_chunk": "0"}, r"default_prefill_chunk is 0, expected a token count"),
        ({"default_prefill_chunk": '"128K"'}, r"default_prefill_chunk is larger than default_max_context"),
    ],
)
def test_wrong_recipe_is_refused_naming_file_and_field(
    tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.toml: .*{message}"):
        read_recipe(write(tmp_path, **changes))


def test_recipe_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("gpu: Card", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        read_recipe(path)
