"""What the runtime declares of ONNX Runtime's interface is compared with the published header, all of it."""

from __future__ import annotations

import re
import subprocess

import pytest
from support.native_runtime import REPOSITORY, sanitized_build

DECLARED = REPOSITORY / "runtime" / "src" / "engines" / "onnxruntime" / "interface.h"
COMPARED = REPOSITORY / "runtime" / "tests" / "onnxruntime_interface_test.cc"


def test_every_declaration_is_compared() -> None:
    declared = DECLARED.read_text(encoding="utf-8")
    members = set(re.findall(r"\(\*(\w+)\)\(", declared)) - {"task"}
    values = set(re.findall(r"\b(O\w+) = \d+", declared)) | set(re.findall(r"\b(INPUT\w+) = \d+", declared))
    assert len(members) > 60
    assert len(values) > 10
    compared = COMPARED.read_text(encoding="utf-8")
    assert members <= set(re.findall(r"SALA_MEMBER\(\w+, (\w+)\)", compared))
    assert values <= set(re.findall(r"SALA_VALUE\((\w+)\)", compared))
    assert set(re.findall(r"enum (\w+)", declared)) <= set(re.findall(r"SALA_ENUMERATION\((\w+)\)", compared))


def test_header_was_there_to_compare_with() -> None:
    tests = sanitized_build() / "tests" / "sala_runtime_tests"
    command = [tests, "--gtest_filter=OnnxRuntimeInterface.*"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 test from 1 test suite ran" in done.stdout
    if "NOT COMPARED" in done.stdout:
        pytest.skip("NOT COMPARED with the header of ONNX Runtime: install libonnxruntime-dev")
