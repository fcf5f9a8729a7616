"""The names of a step's tensors are the same in C++ and in Python."""

from __future__ import annotations

import re

from support.documents import ROOT

from sala_export.engine.profiles import ProfileName

_CPP = re.compile(r'^constexpr std::string_view k(\w+) = "(.*)";', re.MULTILINE)
_PYTHON = re.compile(r'^([A-Z_0-9]+) = "(.*)"$', re.MULTILINE)


def test_step_names_are_the_same_in_both_languages() -> None:
    header = (ROOT / "runtime/include/sala/step_names.h").read_text(encoding="utf-8")
    module = (ROOT / "sala_export/model/signature.py").read_text(encoding="utf-8")
    in_cpp = {name.lower(): value for name, value in _CPP.findall(header)}
    in_python = {name.replace("_", "").lower(): value for name, value in _PYTHON.findall(module)}
    assert in_cpp == in_python | {profile.name.lower(): profile.value for profile in ProfileName}
