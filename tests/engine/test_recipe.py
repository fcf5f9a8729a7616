"""Recipes: those that ship, and every way in which a recipe can be wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import ROOT
from support.hostile_files import NO_FILES

from sala_export.engine.recipe import (
    ComputeCapability,
    group_paths,
    load_recipe,
    load_target,
    names_of,
    read_recipe,
    recipe_paths,
)
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
        ("rtx5080", "SM120", 16, 960, 112.6),
        ("rtx5070ti", "SM120", 16, 896, 87.9),
        ("rtxpro6000", "SM120", 96, 1792, 503.8),
        ("a6000", "SM86", 48, 768, 154.8),
        ("rtx3090", "SM86", 24, 936, 71),
        ("rtx4090", "SM89", 24, 1008, 165.2),
        ("rtx4080", "SM89", 16, 716.8, 97.5),
        ("l40s", "SM89", 48, 864, 362),
        ("a6000d", "SM120", 84, 1398, 148),
        ("spark", "SM121", 128, 273, 125),
        ("orin64", "SM87", 64, 204.8, 42.5),
        ("orin32", "SM87", 32, 204.8, 27),
        ("thor", "SM110", 128, 273, 258.5),
    ],
)
def test_shipped_recipe_has_published_numbers(
    name: str, sm: str, gigabytes: int, bandwidth: float, bf16: float
) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.compute_capability.sm == sm
    assert gigabytes * 10**9 <= recipe.memory_bytes <= gigabytes * 2**30
    assert recipe.memory_gigabytes_per_second == bandwidth
    assert recipe.peak_tera_operations_per_second["bf16"] == bf16
    assert recipe.default_prefill_chunk == 8192


def test_every_shipped_recipe_loads_and_no_name_is_given_twice() -> None:
    recipes = [read_recipe(path) for path in recipe_paths().values()]
    names = [name for recipe in recipes for name in (recipe.name, recipe.gpu.lower(), *recipe.aliases)]
    assert len(recipes) == 14
    names += group_paths()
    assert len(set(names)) == len(names)


def test_machines_whose_memory_is_shared_leave_more_to_others_and_are_arm() -> None:
    recipes = [read_recipe(path) for path in recipe_paths().values()]
    assert {recipe.name for recipe in recipes if recipe.machine == "aarch64"} == {"orin32", "orin64", "spark", "thor"}
    assert {recipe.name for recipe in recipes if recipe.reserve_bytes > 2**32} == {"orin32", "orin64", "spark", "thor"}
    assert {recipe.machine for recipe in recipes} == {"aarch64", "x86_64"}


@pytest.mark.parametrize("name", ["RTX5090", "5090", "nvidia geforce rtx 5090"])
def test_recipe_is_found_by_alias_and_full_name(name: str) -> None:
    assert load_recipe(name).name == "rtx5090"


SINGLE = ", ".join(sorted(path.stem for path in (ROOT / "engines").glob("*.toml") if path.stem != "rtx"))


def test_unknown_gpu_lists_the_known_ones() -> None:
    assert {"a6000", "a6000d", "rtx4090", "rtx5090"} <= set(SINGLE.split(", "))
    message = f"--gpu h100: unknown GPU; known are {SINGLE}"
    with pytest.raises(RequestError, match=re.escape(f"{message}, or")) as error:
        load_recipe("h100")
    assert error.value.exit_code == 2
    with pytest.raises(RequestError, match=re.escape(f"{message}, rtx, or")):
        load_target("h100")


def test_recipe_of_the_user_is_read_from_its_path(tmp_path: Path) -> None:
    recipe = load_recipe(str(write(tmp_path)))
    assert recipe.name == "mine"
    assert recipe.compute_capability == ComputeCapability(8, 6)
    assert (recipe.default_max_context, recipe.default_prefill_chunk) == (65536, 2048)
    assert recipe.precisions == ("bf16", "int8")


def test_recipe_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--gpu .*none\.toml: cannot read the recipe: \S+none\.toml does not exist"):
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
        ({"memory_bytes": f"{2**63}"}, r"memory_bytes is 9223372036854775808, expected a positive integer of at most"),
        ({"reserve_bytes": "1" + 300 * "0"}, r"reserve_bytes is 10{300}, expected a positive integer of at most"),
        ({"memory_bytes": "0x" + 9000 * "f"}, r"memory_bytes is a number of thousands of digits, expected a positive"),
        ({"default_max_context": f"{2**31}"}, r"default_max_context is 2147483648, expected a token count of at most"),
        ({"default_prefill_chunk": "1" + 300 * "0"}, r"default_prefill_chunk is 10{300}, expected a token count"),
        ({"memory_gigabytes_per_second": "inf"}, r"per_second is inf, expected a positive number of 0\.001 to"),
        ({"memory_gigabytes_per_second": "nan"}, r"per_second is nan, expected a positive number of 0\.001 to"),
        ({"memory_gigabytes_per_second": "1e500"}, r"per_second is inf, expected a positive number of 0\.001 to"),
        ({"memory_gigabytes_per_second": "1" + 400 * "0"}, r"per_second is 10{400}, expected a positive number"),
        ({"memory_gigabytes_per_second": "1e-300"}, r"per_second is 1e-300, expected a positive number of 0\.001 to"),
        ({"peak_tera_operations_per_second": "{ bf16 = 2e9 }"}, r"per_second\.bf16 is 20{9}\.0, expected a positive"),
        ({"compute_capability": f'"{3000 * "1"}.0"'}, r"compute_capability is '1+\.0', expected major\.minor"),
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


@pytest.mark.parametrize("kind", NO_FILES)
def test_recipe_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path)
    NO_FILES[kind](path)
    with pytest.raises(RequestError, match=r"--gpu .*mine\.toml: cannot read the recipe: .*mine\.toml "):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (".".join(20_000 * "k") + " = 1", "line 1 has more than 100 dots: shorten its key"),
        ("\n[" + ".".join(20_000 * "k") + "]", "line 2 has more than 100 dots: shorten its key"),
        ("a = { " + " . ".join(9_000 * "k") + " = 1 }", "line 1 has more than 100 dots: shorten its key"),
        ("# " + 65_535 * "x", "has 65537 bytes, expected at most 65536"),
    ],
    ids=["key", "table", "inline table", "large"],
)
def test_recipe_that_takes_minutes_to_read_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((ConfigError, RequestError), match=rf"mine\.toml.* {told}"):
        read_recipe(path)


def test_dots_in_a_comment_are_no_key(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text("  # " + 200 * "." + "\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_recipe(path).gpu == "Card"


@pytest.mark.parametrize("text", ["gpu: Card", "a = " + "[" * 60000, "a = " + "1" * 5000], ids=["yaml", "deep", "long"])
def test_recipe_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "name", "gpus", "capabilities"),
    [
        ("5090", "rtx5090", ["rtx5090"], ["12.0"]),
        ("RTX", "rtx", ["a6000", "rtx4090", "rtx5090", "a6000d"], ["8.6", "8.9", "12.0"]),
        ("rtx5090,a6000", "rtx5090-a6000", ["rtx5090", "a6000"], ["8.6", "12.0"]),
        (" rtx-a6000 , a6000d", "a6000-a6000d", ["a6000", "a6000d"], ["8.6", "12.0"]),
        ("rtx5090,a6000d", "rtx5090-a6000d", ["rtx5090", "a6000d"], ["12.0"]),
    ],
)
def test_target_is_one_gpu_or_several(text: str, name: str, gpus: list[str], capabilities: list[str]) -> None:
    target = load_target(text)
    assert target.name == name
    assert [recipe.name for recipe in target.gpus] == gpus
    assert [str(capability) for capability in target.compute_capabilities] == capabilities


def test_group_and_recipe_of_the_user_are_read_from_their_paths(tmp_path: Path) -> None:
    mine = write(tmp_path)
    group = tmp_path / "lab.toml"
    group.write_text(f'members = ["4090", "{mine}"]', encoding="utf-8")
    assert [recipe.name for recipe in load_target(str(group)).gpus] == ["rtx4090", "mine"]
    assert load_target(f"{group},rtx5090").name == "lab-rtx5090"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rtx5090,h100", r"^--gpu h100: unknown GPU; known are"),
        ("rtx5090,5090", r"^--gpu rtx5090,5090: rtx5090 is named twice: name each GPU once$"),
        ("a6000,rtx", r"^--gpu a6000,rtx: a6000 is named twice"),
        ("a6000,", r"^--gpu a6000,: a name is missing; write a name, or several as in a6000,rtx5090$"),
        ("", r"^--gpu : a name is missing"),
        ("none.toml", r"^--gpu none\.toml: cannot read the recipe: none\.toml does not exist"),
    ],
)
def test_target_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_target(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("members = []", r"members is \[\], expected a list of names of recipes"),
        ("members = [8.6]", r"members is \[8\.6\], expected a list of names"),
        ('members = ["a6000"]\ngpu = "x"', r"members stands alone in the recipe of a group: remove the other keys"),
        ('members = ["a6000", "RTX-A6000"]', r"members: a6000 is named twice"),
        ('members = ["a6000", "h100"]', r"members: --gpu h100: unknown GPU"),
        ('members = ["a6000d", "rtx"]', r"members: --gpu rtx: name one GPU of these: a6000, rtx4090, rtx5090, a6000d"),
    ],
)
def test_wrong_group_is_refused_naming_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"lab\.toml: {message}"):
        load_target(str(path))


def test_one_gpu_is_asked_for_where_several_do_not_serve(tmp_path: Path) -> None:
    group = tmp_path / "lab.toml"
    group.write_text('members = ["a6000", "rtx4090"]', encoding="utf-8")
    for text, known in (
        ("RTX", "a6000, rtx4090, rtx5090, a6000d"),
        ("a6000,rtx5090", SINGLE),
        (str(group), "a6000, rtx4090"),
    ):
        with pytest.raises(RequestError, match=f"^--gpu {re.escape(text)}: name one GPU of these: {known}$"):
            load_recipe(text)


def test_names_of_gpus_make_a_list_of_words() -> None:
    recipes = load_target("rtx4090,rtx5090,a6000").gpus
    assert names_of(recipes[:1]) == "NVIDIA GeForce RTX 4090"
    assert (
        names_of(recipes[:2], capabilities=True) == "NVIDIA GeForce RTX 4090 (SM89) and NVIDIA GeForce RTX 5090 (SM120)"
    )
    assert names_of(recipes) == "NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 5090 and NVIDIA RTX A6000"
