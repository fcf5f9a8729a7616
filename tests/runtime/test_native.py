"""The C++ unit tests, with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import re
import subprocess

from support.native_runtime import sanitized_build


def test_cpp_unit_tests_pass_under_sanitizers() -> None:
    tests = sanitized_build() / "tests" / "sala_runtime_tests"
    done = subprocess.run([tests, "--gtest_brief=1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = re.search(r"(\d+) tests from \d+ test suites ran", done.stdout)
    assert ran is not None, done.stdout
    assert int(ran[1]) >= 140, "some test files are missing from the build"
