#!/usr/bin/env bash
# Install, then take a tiny random model all the way: checkpoint, one engine for every RTX card, and an answer.
# Everything is written below build/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

out=build/quickstart
sala=.venv/bin/sala-export
if [ -x "$sala" ]; then
    echo "Step 1 of 4: installed already. scripts/install.sh does it anew."
else
    echo "Step 1 of 4: install"
    scripts/install.sh
fi
mkdir -p "$out"

step() { # WHAT COMMAND...
    printf '\n%s\n$ sala-export' "$1"
    printf ' %q' "${@:2}"
    echo
    "$sala" "${@:2}"
}

step "Step 2 of 4: a tiny checkpoint with random weights, a second" \
    random-checkpoint "$out/tiny" --preset tiny --force
step "Step 3 of 4: one engine for every RTX card, about 10 seconds" \
    build --gpu rtx --model "$out/tiny" --output "$out/tiny.sala" --force
step "Step 4 of 4: an answer. Random weights speak in random syllables." \
    generate "$out/tiny.sala" --prompt "Hello" --max-new-tokens 16
cat <<'TEXT'


It works. Now take the real model, 19 GB to download:

    source .venv/bin/activate
    sala-export build --gpu rtx -o sala.sala
    sala-export generate sala.sala --chat --prompt "Why is the sky blue?"

On a CPU that takes 18 GiB of memory, and 6 GiB in int4. docs/README.md says where to read on.
TEXT
