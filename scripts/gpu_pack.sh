#!/usr/bin/env bash
# Pack what a bare GPU machine lacks: scripts/gpu_pack.sh DIR [--python PYTHON]
#
# The GPU machine has Python 3.12, PyTorch and Triton, but no package index and no TensorRT headers (docs/gpu.md). DIR
# gets wheels, the native libraries, the program plugin_driver, and unpack.sh, which puts them in place there. It is
# replaced if this script made it, and refused otherwise. Run scripts/install.sh test first. PYTHON is a Python 3.12 of
# this machine, found without the option if it is called python3.12 or comes from pyenv.
#
# What is built stays in build/gpu-pack, so that the next pack takes seconds.
set -euo pipefail

readonly LIMIT_BYTES=60000000
readonly TITLE="sala-export: what a bare GPU machine lacks"
readonly WORK=build/gpu-pack

fail() {
    echo "error: $*" >&2
    exit 2
}

usage() {
    fail "usage: scripts/gpu_pack.sh DIR [--python PYTHON]"
}

# Runs a command and shows what it said only if it fails.
quietly() {
    local what=$1
    shift
    "$@" >"$WORK/log.txt" 2>&1 && return
    tail -n 20 "$WORK/log.txt" >&2
    fail "$what failed: the lines above are the end of $WORK/log.txt"
}

require_own() { # DIR
    [ ! -e "$1" ] || [ "$(head -n 1 "$1/CONTENTS.txt" 2>/dev/null)" = "$TITLE" ] ||
        fail "$1 exists, and this script did not make it: choose another folder, or delete it"
}

is_python_3_12() { # PYTHON
    [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.12 ]
}

find_python() { # the value of --python
    local candidate
    if [ -n "$1" ]; then
        is_python_3_12 "$1" || fail "$1 is no Python 3.12"
        echo "$1"
        return
    fi
    for candidate in python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python3; do
        if is_python_3_12 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "there is no Python 3.12: get one (pyenv install 3.12, or the system's python3.12-dev) and give it as --python"
}

require_installation() {
    local program
    [ -x .venv/bin/python ] || fail "there is no .venv: run scripts/install.sh test"
    export PATH="$PWD/.venv/bin:$PATH"
    for program in cmake ninja c++; do
        command -v "$program" >/dev/null ||
            fail "$program is missing: run scripts/install.sh test, and install a C++ compiler"
    done
}

# Where the installation has a library; fails if a source is newer, because then other kernels would be measured.
installed_library() { # FUNCTION of sala_export.installation
    local library newer
    library=$(.venv/bin/python -c "from sala_export import installation as n; print(n.$1())" 2>/dev/null) ||
        fail "the libraries are not installed: run scripts/install.sh test"
    newer=$(find plugins sala_export/ops -type f -regex '.*\.\(py\|cc\|h\|txt\|map\)' -newer "$library" -print -quit)
    [ -z "$newer" ] || fail "$newer is newer than $library: run scripts/install.sh test"
    echo "$library"
}

# The native Python module: the runtime alone, which needs neither Triton nor TensorRT's headers.
build_native() { # PYTHON
    local python=$1 tools requirements
    tools=$WORK/python-$("$python" -c 'import platform; print(platform.python_version())')
    if ! "$tools/bin/python" -c "import nanobind, nlohmann_json" 2>/dev/null; then
        mapfile -t requirements < <(.venv/bin/python -c "
import tomllib
required = tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires']
print(*(r for r in required if r.startswith(('nanobind', 'nlohmann-json'))), sep='\n')")
        quietly "making a Python environment" "$python" -m venv --clear "$tools"
        quietly "fetching ${requirements[*]}" "$tools/bin/python" -m pip install "${requirements[@]}"
    fi
    local interpreter=$PWD/$tools/bin/python
    quietly "configuring the native module" cmake -S runtime -B "$WORK/native" -G Ninja \
        -D SALA_RUNTIME_PYTHON=ON -D SALA_C_LIBRARY=OFF \
        -D Python_EXECUTABLE="$interpreter" -D Python3_EXECUTABLE="$interpreter"
    quietly "building the native module" cmake --build "$WORK/native" --target sala_native
}

build_driver() {
    quietly "configuring plugin_driver" cmake -S tests/plugins/native -B "$WORK/driver" -G Ninja \
        -D CMAKE_BUILD_TYPE=Release -D Python3_EXECUTABLE="$PWD/.venv/bin/python"
    quietly "building plugin_driver" cmake --build "$WORK/driver" --target plugin_driver
}

fetch_wheels() {
    local wanted=scripts/gpu_pack_wheels.txt
    cmp --silent "$wanted" "$WORK/wheels/wanted.txt" && return
    rm -rf "$WORK/wheels"
    quietly "fetching the wheels of $wanted" .venv/bin/python -m pip download --no-deps --only-binary=:all: \
        --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --dest "$WORK/wheels" --requirement "$wanted"
    cp "$wanted" "$WORK/wheels/wanted.txt"
}

# The commit, with a + if the checkout differs from it.
commit() {
    echo "$(git rev-parse HEAD)$([ -z "$(git status --porcelain)" ] || echo +)"
}

gather() { # CONTENTS
    local package=$1/native/sala_export library
    mkdir -p "$1/wheels" "$1/bin" "$package/lib" "$package/runtime"
    cp "$WORK"/wheels/*.whl "$1/wheels"
    cp "$WORK"/native/bindings/_native.cpython-312-x86_64-linux-gnu.so "$package/runtime"
    for library in "${@:2}"; do
        cp "$library" "$package/lib"
    done
    cp "$WORK/driver/plugin_driver" "$1/bin"
    cp scripts/gpu_unpack.sh "$1/unpack.sh"
    echo "$made_of" >"$1/commit.txt"
}

# Writes the list, checks the size, and puts the folder in its place.
finish() { # CONTENTS DIR
    local contents=$1 target=$2 bytes
    require_own "$target"
    bytes=$(find "$contents" -type f -printf '%s\n' | awk '{sum += $1} END {print sum + 0}')
    {
        echo "$TITLE"
        [ ! -f "$contents/commit.txt" ] || echo "of commit $(cat "$contents/commit.txt")"
        (cd "$contents" && find . -type f -printf '%12s  %P\n' | sort -k 2)
        printf '%12s  bytes in all\n' "$bytes"
    } >"$contents.list"
    if [ "$bytes" -gt "$LIMIT_BYTES" ]; then
        cat "$contents.list" >&2
        rm "$contents.list"
        fail "these are $bytes bytes, more than the $LIMIT_BYTES that may travel"
    fi
    mv "$contents.list" "$contents/CONTENTS.txt"
    rm -rf "$target"
    mv "$contents" "$target"
    cat "$target/CONTENTS.txt"
}

main() {
    local target="" python="" plugins operators
    while [ $# -gt 0 ]; do
        case $1 in
        --python) [ $# -gt 1 ] || usage; python=$2; shift ;;
        -*) usage ;;
        *) [ -z "$target" ] || usage; target=$1 ;;
        esac
        shift
    done
    [ -n "$target" ] || usage
    target=$(realpath -m "$target")
    cd "$(dirname "$0")/.."
    require_own "$target"
    python=$(find_python "$python")
    require_installation
    plugins=$(installed_library plugin_library)
    operators=$(installed_library onnxruntime_operators)
    mkdir -p "$WORK" "$(dirname "$target")"
    fetch_wheels
    build_driver
    build_native "$python"
    made_of=$(commit) # before there is a folder that git does not know
    # Beside its place, so that moving it there is one step.
    contents=$target.partial-$$
    trap 'rm -rf "$contents" "$contents.list"' EXIT
    gather "$contents" "$plugins" "$operators"
    finish "$contents" "$target"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
