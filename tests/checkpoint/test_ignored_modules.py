"""The expressions of `ignore`: those in use are taken, and none takes long."""

from __future__ import annotations

import re
import time

import pytest

from sala_export.checkpoint.ignored_modules import is_listed, require_quick
from sala_export.errors import ConfigError

MODULE = "model.layers.31.self_attn.q_proj"


@pytest.mark.parametrize(
    "expression",
    [
        r".*q_proj",
        r".*q_proj|.*k_proj|.*v_proj|.*o_proj|.*gate|.*up_proj|lm_head",
        r"model\.layers\.(0|1|2|3|30|31)\..*",
        r"model\.layers\.[0-9]+\.(self_attn|mlp)\..*_proj$",
        r"^(?!.*(mlp|gate)).*$",
        r"(?i:MODEL)\.(?P<rest>.*)",
        r".*?layers\.\d{1,2}\.[^.]+\.q_proj",
        r"[]a-z.]{5,6}[(*+|{]?layers",
        r"(language_model\.)?model\.layers\.31",
    ],
)
def test_expression_in_use_is_taken(expression: str) -> None:
    require_quick(["lm_head", f"re:{expression}"])
    assert is_listed(MODULE, ["lm_head", f"re:{expression}"]) == bool(re.match(expression, MODULE))


def test_many_entries_are_taken() -> None:
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(10_000)]
    require_quick([*names, *(rf"re:.*layers\.{layer}\..*" for layer in range(400))])
    assert is_listed("model.layers.77.mlp.up_proj", names)
    assert not is_listed(MODULE, names)


@pytest.mark.parametrize(
    "expression",
    [
        r"([a-z.]*)*_",
        r"(.+)+!",
        r"(?:.|.){30}!",
        r"(?:.|..){1,}!",
        "(.|.)" * 30 + "!",
        ".*" * 12 + "!",
        ".?" * 32 + "." * 32 + "!",
        r"(?x)([a-z.]*) *!",
        r"(?ix:([a-z.]*) *!)",
        r"([a-z.]*)(?#hidden)*!",
        "((.*)?.*)?((.*)?.*)?!",
    ],
)
def test_expression_that_may_match_for_ever_is_refused(expression: str) -> None:
    re.compile(expression)
    with pytest.raises(ConfigError, match=r"^\.ignore holds .* may match for ever"):
        require_quick([f"re:{expression}"])


def test_what_is_taken_is_quick() -> None:
    taken = [".*" * 4 + "!", "(.|.)" * 16 + "!", ".?" * 4 + "!"]
    for expression in taken:
        require_quick([f"re:{expression}"])
        start = time.monotonic()
        assert not is_listed(MODULE, [f"re:{expression}"])
        assert time.monotonic() - start < 1


def test_too_many_and_too_long_expressions_are_refused() -> None:
    with pytest.raises(ConfigError, match="501 expressions, at most 500"):
        require_quick([f"re:{number}" for number in range(501)])
    with pytest.raises(ConfigError, match="of 1001 characters, at most 1000"):
        require_quick(["re:" + "a" * 1001])


def test_python_does_not_warn_of_an_expression(recwarn: pytest.WarningsRecorder) -> None:
    """A warning shows a line of this program to somebody who cannot act on it."""
    ignore = ["re:[[x]a.*", "re:[a||z]b", "re:model[~a~~b&&]c"]
    require_quick(ignore)
    assert not is_listed(MODULE, ignore)
    assert is_listed("xab", ignore)
    assert not recwarn.list
