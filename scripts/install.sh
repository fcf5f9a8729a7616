#!/usr/bin/env bash
# Install sala-export into .venv of this checkout: scripts/install.sh [--light | --architectures LIST] [EXTRA,...]
#
# You can then build bundles and run them. --light leaves out what only building needs. --architectures compiles the
# kernels for the GPUs of LIST alone, as in 87,121 (docs/gpus.md). EXTRA adds more, for example `torch` to quantise and
# verify, or `test,dev,docs` to change this project. Installs afresh what is missing or changed; the native libraries
# are rebuilt every time.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly LOG=build/install.log

fail() {
    echo "error: $*" >&2
    exit 2
}

is_recent() { # PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    # A .venv without pip is what Debian leaves that lacks python3-venv.
    [ ! -x .venv/bin/pip ] || candidates=(.venv/bin/python)
    for candidate in "${candidates[@]}"; do
        if is_recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed: sudo apt install g++ python3-dev python3-venv, on Ubuntu 22.04" \
        "g++-12 python3.11-dev python3.11-venv, or uv venv --seed --python 3.12 .venv"
}

has_headers() { # PYTHON
    "$1" -c 'import pathlib, sysconfig; assert pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()' \
        2>/dev/null
}

# Debian and Ubuntu divide Python into packages: the module venv is there without what it needs.
has_venv() { # PYTHON
    [ -x .venv/bin/pip ] || "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# The first compiler that knows what the kernels are written with, which GCC has since 12; nothing if there is none.
find_compiler() {
    local candidate
    for candidate in "${CXX:-c++}" g++ g++-14 g++-13 g++-12 clang++; do
        if "$candidate" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null <<<'
            #if !__has_builtin(__builtin_shufflevector)
            #error too old
            #endif'; then
            echo "$candidate"
            return
        fi
    done
}

require_system() { # PYTHON COMPILER
    local python missing=() packages="" advice
    python=python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ -z "$2" ]; then
        missing+=("a C++ compiler (GCC 12 or newer)")
        packages+=" g++"
        command -v c++ >/dev/null && packages+="-12"
    fi
    has_headers "$1" || { missing+=("Python's headers"); packages+=" $python-dev"; }
    has_venv "$1" || { missing+=("Python's venv"); packages+=" $python-venv"; }
    [ ${#missing[@]} -gt 0 ] || return 0
    advice="sudo apt install$packages"
    if command -v dnf >/dev/null; then
        advice="sudo dnf install gcc-c++ python3-devel"
    fi
    missing=("${missing[@]/#/, }")
    fail "this system lacks$(printf '%s' "${missing[@]}" | cut -c 2-): $advice"
}

# Until it is killed: what the log says last, every 20 seconds.
report() {
    while sleep 20; do
        printf '  %3d s  %s\n' "$SECONDS" "$(tail -n 1 "$LOG" | tr -d '\r' | cut -c 1-100)"
    done
}

# Runs a command with its output in the log, and shows the end of that if the command fails.
logged() {
    local reporter status=0
    report &
    reporter=$!
    # shellcheck disable=SC2064
    trap "kill $reporter 2>/dev/null" EXIT
    "$@" >"$LOG" 2>&1 || status=$?
    kill "$reporter"
    trap - EXIT
    [ "$status" -eq 0 ] && return
    tail -n 20 "$LOG" >&2
    echo "error: the installation failed: the lines above are the end of $PWD/$LOG" >&2
    exit 1
}

# What some tests run beside the package. It has a folder of its own, because it wants older packages.
install_test_server() {
    local wanted=tests/triton_server.txt folder=build/triton-server
    cmp -s "$wanted" "$folder/installed.txt" && return
    rm -rf "$folder"
    logged .venv/bin/python -m pip install --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$folder" --requirement "$wanted"
    cp "$wanted" "$folder/installed.txt"
}

main() {
    local python compiler extras=build,serve options=() what="compiles the GPU kernels and the runtime: 3 to 10 minutes"
    if [ "${1:-}" = --light ]; then
        shift
        extras=""
        options=(--config-settings cmake.define.SALA_PLUGINS=OFF)
        what="compiles the runtime: 1 to 4 minutes"
    fi
    if [[ ${1:-} = --architectures && ${2:-} =~ ^[0-9]+(,[0-9]+)*$ ]]; then
        options=(--config-settings "cmake.define.SALA_ARCHITECTURES=$2")
        shift 2
    fi
    [[ $# -le 1 && ${1:-} != -* ]] ||
        fail "usage: scripts/install.sh [--light | --architectures LIST] [EXTRA,...], with a LIST as in 86,120"
    extras+="${1:+,$1}"
    python=$(find_python)
    compiler=$(find_compiler)
    require_system "$python" "$compiler"
    # Tests look at what was compiled here.
    rm -rf build/native
    options+=(--config-settings "cmake.define.CMAKE_CXX_COMPILER=$compiler"
        --config-settings "build-dir=$PWD/build/native")
    [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
    mkdir -p build
    echo "Installing into .venv: fetches packages and $what. The log is $LOG."
    # Ubuntu 22.04 brings a pip that does not know --config-settings.
    logged .venv/bin/python -m pip install --disable-pip-version-check "pip>=23.1"
    logged .venv/bin/python -m pip install --verbose --disable-pip-version-check "${options[@]}" \
        --editable ".${extras:+[${extras#,}]}"
    [[ ,$extras, != *,test,* ]] || install_test_server
    echo "Installed in $SECONDS s. Type: source .venv/bin/activate"
}

main "$@"
