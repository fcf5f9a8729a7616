#!/usr/bin/env bash
# Install sala-export into .venv of this checkout: scripts/install.sh [EXTRA,...]
# Installs afresh what is missing or changed; the native libraries are rebuilt every time.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed" >&2; exit 2; }
# A Debian without python3-venv leaves a directory without pip.
[ -x .venv/bin/pip ] || python3 -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
