"""The names of a step's tensors are the same in C++ and in Python."""

from __future__ import annotations

import re

from support.documents import ROOT

from sala_export.engine.profiles import ProfileName
from sala_export.model import signature

HEADER = ROOT / "runtime" / "include" / "sala" / "step_names.h"
_CONSTANT = re.compile(r'constexpr std::string_view k(\w+) = "([^"]*)";')


def test_step_names_are_the_same_in_both_languages() -> None:
    in_cpp = dict(_CONSTANT.findall(HEADER.read_text(encoding="utf-8")))
    constants = {name: value for name, value in vars(signature).items() if name.isupper() and isinstance(value, str)}
    in_python = {name.replace("_", "").lower(): value for name, value in constants.items()}
    in_python |= {profile.name.lower(): profile.value for profile in ProfileName}
    assert {name.lower(): value for name, value in in_cpp.items()} == in_python
