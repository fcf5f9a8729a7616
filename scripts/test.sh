#!/usr/bin/env bash
# Install, then run every check and test. Arguments go to pytest, e.g. scripts/test.sh --require gpu -k lightning
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install.sh test,dev,docs
export PATH="$PWD/.venv/bin:$PATH" # tests build C++ with the CMake and Ninja of the test extra
pre-commit run --all-files --show-diff-on-failure # ruff, clang-format, codespell and small things
mypy
lint-imports
# A file's tests stay in one process, which builds what they share once. tests/conftest.py says which files come first.
python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
