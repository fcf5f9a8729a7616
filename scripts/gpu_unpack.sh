#!/usr/bin/env bash
# Put a pack of scripts/gpu_pack.sh in place, in the repository's root on the GPU machine:
#
#   source PACK/unpack.sh         the wheels go to build/gpu-site, and PYTHONPATH of this shell names them
#   bash PACK/unpack.sh TARGET    the wheels go to TARGET; the last line says what to type
#
# Native libraries go into the checkout's sala_export/, where git ignores them, and the commit into
# sala_export/lib/commit.txt, since a checkout without .git does not know it. Doing it again changes nothing.

sala_unpack() { # TARGET
    local pack target module suffix
    pack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    target=$(realpath -m "$1")
    [ -f sala_export/installation.py ] ||
        { echo "error: $PWD is not the root of sala-export: go there first" >&2; return 2; }
    # The name of the module says for which Python and processor the pack is.
    module=$(echo "$pack"/native/sala_export/runtime/_native.*)
    suffix=$(python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))') ||
        { echo "error: there is no python3" >&2; return 2; }
    [ "_native$suffix" = "$(basename "$module")" ] ||
        { echo "error: this pack is for $(basename "$module"), python3 here takes _native$suffix" >&2; return 2; }
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-index --no-deps \
        --no-compile --upgrade --target "$target" "$pack"/wheels/*.whl || return 2
    mkdir -p sala_export/lib || return 2
    cp "$pack"/native/sala_export/lib/*.so "$pack/commit.txt" sala_export/lib || return 2
    cp "$module" sala_export/runtime || return 2
    # A copy may have lost what makes a file a program.
    [ ! -d "$pack/bin" ] || chmod -R +x "$pack/bin" || return 2
    echo "unpacked commit $(cat "$pack/commit.txt"); tests of the plugins take --plugin-driver $pack/bin/plugin_driver"
    sala_site=$target
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    [ $# -eq 1 ] || { echo "error: usage: bash $0 TARGET, or source $0" >&2; exit 2; }
    sala_unpack "$1" || exit
    echo "export PYTHONPATH=$sala_site"
else
    sala_unpack build/gpu-site && export PYTHONPATH=$sala_site
fi
